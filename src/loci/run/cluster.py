"""Replicas under Ray Serve, on this machine or several, each with a name of its own.

    with Cluster(2) as cluster:
        cluster.deploy(Replica, {"replica-0": (0, setup), "replica-1": (1, setup)})
        async for item in cluster.stream("replica-0", "handle", scope, body): ...

Every replica is a deployment of one process, so that it keeps its name when Ray starts it anew and
whoever calls chooses which one; Ray's own routers by session are marked alpha in 2.60, and do not
tell where a request went. Only this module knows Ray.

Ray's processes listen on every interface of the machine, and who may speak with them may run code.
A cluster of our own therefore gets a token that its processes alone know, made for this run, and
leaves its files in a folder that nobody else can read. Ray's reports of usage are off.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any  # Ray is untyped here

import psutil

from loci.errors import LociError, MissingExtraError, ModelError, ParameterError, missing_extra

OBJECT_BYTES = 100 << 20  # of shared memory for messages above 100 kB; Ray's least is 75 MiB
BEGIN_S = 5.0  # in which a replica says that it took a request
BEAT_S, SILENT_S = 1.0, 10.0  # how often it says that it lives, and how long it may say nothing
START_S = 300.0
_LOOPBACK = "127.0.0.2"  # Ray replaces 127.0.0.1 by the address that others see
_CALLS = 4096  # under way at one replica: it refuses by its own budget, long before
_NAMESPACE = "loci"
# The name of a socket has at most 107 characters, and some machines' own folder is deep.
_ROOT = "/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir()
_FOLDERS = "loci-ray-"
_VARIABLES = ("RAY_USAGE_STATS_ENABLED", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")


class LostError(LociError):
    """A replica has died, or does not answer.

    Attributes:
        began: whether it had taken the request.
    """

    def __init__(self, name: str, *, began: bool) -> None:
        self.name, self.began = name, began
        super().__init__(f"{name} has died" if began else f"{name} does not answer")


class FailedError(LociError):
    """Something went wrong inside a replica which lives on."""


def shares(whole: Mapping[str, Any], replicas: int) -> dict[str, Any]:
    """Return what each of so many gets of sizes in bytes; what is no number stays.

    Raises:
        ParameterError: if there is no replica.
    """
    if replicas < 1:
        raise ParameterError("replicas must be >= 1", value=replicas)
    return {
        name: size // replicas if isinstance(size, int) else size for name, size in whole.items()
    }


class Cluster:
    """Ray with its Serve, ours or one that runs; what it made is gone when the `with` ends.

    Args:
        replicas: that will be deployed; the processors are shared out among them.
        address: of a cluster that runs, as `ray start` prints it, or "auto"; None starts one on
            this machine alone.

    Attributes:
        threads: that each replica should use.

    Raises:
        MissingExtraError: if ray is not installed.
        ParameterError: if there is no cluster at the address.
    """

    def __init__(
        self, replicas: int, *, address: str | None = None, object_bytes: int = OBJECT_BYTES
    ) -> None:
        shares({}, replicas)
        self._folder: str | None = None
        self._handles: dict[str, Any] = {}
        self._apps: list[str] = []
        self._before = {name: os.environ.get(name) for name in _VARIABLES}
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        if address is None:  # what it starts inherits them; a cluster that runs has its own
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        try:
            self._ray, self._serve = _imported()
        except MissingExtraError:
            self._restore()
            raise
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        given: dict[str, Any] = {
            "namespace": _NAMESPACE,
            "log_to_driver": False,
            "logging_level": logging.WARNING,
        }
        if address is not None:
            given["address"] = address
        else:
            _clear()
            self._folder = tempfile.mkdtemp(prefix=f"{_FOLDERS}{os.getpid()}-", dir=_ROOT)
            given |= {
                "num_cpus": max(cores, replicas),
                "object_store_memory": object_bytes,
                "include_dashboard": False,
                "_temp_dir": self._folder,
            }
            if sys.platform == "linux":
                given["_node_ip_address"] = _LOOPBACK
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            self._ray.init(**given)
            self.threads = max(1, int(self._ray.cluster_resources().get("CPU", 1)) // replicas)
            self._serve.start(proxy_location="Disabled")
        except (ConnectionError, RuntimeError, ValueError) as error:
            self.close()
            raise ParameterError(
                f"cannot use a Ray cluster: {error}",
                value=address,
                way_out="ray start --head  starts one; without --ray-address Loci starts its own",
            ) from error
        except BaseException:
            self.close()
            raise

    def deploy(self, make: type, given: Mapping[str, tuple[Any, ...]]) -> None:
        """Start one replica a name, `make(*arguments)` in a process of its own, and wait for all.

        `make` has `check_health()`, which raises when the replica should be started anew.

        Raises:
            ModelError: if one does not start.
        """
        serve = self._serve
        targets = []
        for name, arguments in given.items():
            deployment = serve.deployment(
                make,
                name=name,
                num_replicas=1,
                max_ongoing_requests=_CALLS,
                ray_actor_options={"num_cpus": self.threads},
                health_check_period_s=2.0,
                health_check_timeout_s=10.0,
                graceful_shutdown_wait_loop_s=0.1,
                graceful_shutdown_timeout_s=2.0,
                max_constructor_retry_count=1,
                logging_config={"enable_access_log": False, "log_level": "WARNING"},
            )
            app = f"loci-{os.getpid()}-{name}"  # several may share a cluster
            self._apps.append(app)
            targets.append(
                serve.RunTarget(deployment.bind(*arguments), name=app, route_prefix=None)
            )
        try:
            found = serve.run_many(targets)
        except RuntimeError as error:
            raise ModelError(
                f"a replica did not start: {_last_line(error)}",
                way_out="loci serve without --ray shows why",
            ) from error
        self._handles = dict(zip(given, found, strict=True))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the replicas."""
        return tuple(self._handles)

    async def stream(
        self, name: str, method: str, *given: Any, begin_s: float = BEGIN_S
    ) -> AsyncIterator[Any]:
        """Yield what a method of a replica yields; who stops reading cancels it.

        The method yields something at once, which says that it took the request, and then every
        `BEAT_S` at least: that a process was killed is not always told to those who wait for it.

        Raises:
            LostError: if the replica dies, took nothing in `begin_s`, or was silent for `SILENT_S`.
            FailedError: if the method raises.
        """
        began = False
        handle = self._handles[name].options(stream=True, method_name=method)
        answer = handle.remote(*given)
        arriving = answer.__aiter__()
        try:
            while True:
                try:
                    async with asyncio.timeout(SILENT_S if began else begin_s):
                        item = await arriving.__anext__()
                except StopAsyncIteration:
                    answer = None
                    return
                began = True
                yield item
        except TimeoutError:
            raise LostError(name, began=began) from None
        except Exception as error:
            raise self._told(error, name, began) from error
        finally:
            if answer is not None:
                answer.cancel()

    async def call(self, name: str, method: str, *given: Any, timeout_s: float | None) -> Any:
        """Return what a method of a replica returns.

        Raises:
            LostError: if the replica dies, or does not answer in time.
            FailedError: if the method raises.
        """
        answer = self._handles[name].options(method_name=method).remote(*given)
        try:
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            raise LostError(name, began=False) from None
        except Exception as error:
            raise self._told(error, name, True) from error

    def ask(self, name: str, method: str, *given: Any, timeout_s: float) -> Any:
        """Return what a method of a replica returns, from a thread without an event loop."""
        answer = self._handles[name].options(method_name=method).remote(*given)
        try:
            return answer.result(timeout_s=timeout_s)
        except TimeoutError:
            raise LostError(name, began=False) from None
        except Exception as error:
            raise self._told(error, name, True) from error

    async def task(self, function: Callable[..., Any], *given: Any) -> Any:
        """Run a function somewhere in the cluster, again where its process died, beside the rest.

        Raises:
            FailedError: if it raises, or died three times.
        """
        remote = self._ray.remote(num_cpus=0, max_retries=2)(function)
        try:
            return await asyncio.wrap_future(remote.remote(*given).future())
        except self._ray.exceptions.RayError as error:
            raise FailedError(f"a task failed: {_last_line(error)}") from error

    def close(self) -> None:
        """Stop the replicas, and the cluster if it is ours; closing twice does nothing."""
        if self._ray.is_initialized():
            with contextlib.suppress(Exception):  # it may be gone already
                for app in self._apps:
                    self._serve.delete(app, _blocking=False)
                if self._folder is not None:
                    self._serve.shutdown()
            self._ray.shutdown()
        self._handles, self._apps = {}, []
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        self._restore()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _restore(self) -> None:
        """Leave the environment as it was."""
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def _told(self, error: Exception, name: str, began: bool) -> LociError:
        """Return ours for Ray's: the replica is gone, or what runs in it failed."""
        known = self._ray.exceptions
        if isinstance(error, known.RayTaskError) or not isinstance(
            error, (known.RayError, self._serve.exceptions.RayServeException)
        ):
            return FailedError(f"{name} failed: {_last_line(error)}")
        return LostError(name, began=began)


def _imported() -> tuple[Any, Any]:
    try:
        import ray
        from ray import serve
    except ImportError as problem:
        raise missing_extra(str(problem.name), "cluster") from problem
    import ray.exceptions
    import ray.serve.exceptions

    return ray, serve


def _clear() -> None:
    """Remove what those left who were killed."""
    for folder in Path(_ROOT).glob(f"{_FOLDERS}*"):
        pid = folder.name.removeprefix(_FOLDERS).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)  # another person's stays


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
