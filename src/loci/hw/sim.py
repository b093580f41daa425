"""A machine in miniature: tasks that wait for each other and share processors and links.

Every task runs on one resource: for a fixed time (computation) or for the time its bytes take
over a link. A resource serves as many tasks at once as it has servers, and takes the next one by
priority, then by when it became ready, then by its place in the list; a task that has begun is not
interrupted. The same tasks therefore always give the same schedule, to the last bit.

    time of a task on a link = latency + bytes / bandwidth

The link is busy only for the bytes: the latencies of waiting transfers overlap, as they do on a
device that accepts several commands at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from loci.errors import ParameterError
from loci.hw.profiles import DeviceProfile


@dataclass(frozen=True, kw_only=True)
class Resource:
    """Something that does work: `servers` tasks at a time."""

    name: str
    servers: int = 1

    def __post_init__(self) -> None:
        if self.servers < 1:
            raise ParameterError(f"{self.name} needs at least one server", value=self.servers)


@dataclass(frozen=True, kw_only=True)
class Link(Resource):
    """A path for bytes. With several servers each has the whole bandwidth (separate lanes)."""

    bytes_per_s: float
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bytes_per_s <= 0 or self.latency_s < 0:
            raise ParameterError(
                f"{self.name} needs a positive bandwidth and no negative latency",
                value=(self.bytes_per_s, self.latency_s),
            )


@dataclass(frozen=True, kw_only=True)
class Task:
    """One piece of work.

    Attributes:
        name: unique.
        on: the resource it runs on.
        seconds: how long it takes; for tasks on a link, on top of its bytes.
        nbytes: what crosses the link; 0 on anything else.
        after: names of tasks that must have ended.
        not_before: seconds; the earliest it may be ready.
        priority: the lower goes first.
    """

    name: str
    on: str
    seconds: float = 0.0
    nbytes: float = 0.0
    after: tuple[str, ...] = ()
    not_before: float = 0.0
    priority: int = 0


@dataclass(frozen=True, kw_only=True)
class Span:
    """When a task ran. `ready` is when all it waited for had ended."""

    task: str
    on: str
    ready: float
    start: float
    end: float
    nbytes: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a simulation gave.

    Attributes:
        makespan: when the last task ended.
        spans: one a task, by start.
        busy: {resource: seconds of work, summed over its servers}.
        moved: {link: bytes}.
        servers: {resource: how many}.
    """

    makespan: float
    spans: tuple[Span, ...]
    busy: Mapping[str, float] = field(default_factory=dict)
    moved: Mapping[str, float] = field(default_factory=dict)
    servers: Mapping[str, int] = field(default_factory=dict)

    def utilisation(self, name: str) -> float:
        """Return the share of its servers' time that a resource worked, 0 to 1."""
        whole = self.makespan * self.servers[name]
        return self.busy[name] / whole if whole else 0.0

    def span(self, task: str) -> Span:
        """Return when a task ran."""
        for span in self.spans:
            if span.task == task:
                return span
        raise ParameterError("no such task ran", value=task)


class EventSimulator:
    """Resources on which tasks are run.

    >>> machine = EventSimulator([Resource(name="cpu"), Link(name="disk", bytes_per_s=100)])
    >>> read = Task(name="read", on="disk", nbytes=200)
    >>> machine.run([read, Task(name="use", on="cpu", seconds=1, after=("read",))]).makespan
    3.0
    """

    def __init__(self, resources: Sequence[Resource]) -> None:
        self.resources = {resource.name: resource for resource in resources}
        if len(self.resources) != len(resources):
            raise ParameterError("two resources have the same name")

    def run(self, tasks: Sequence[Task]) -> Run:
        """Run tasks and return their schedule.

        Raises:
            ParameterError: if a task is impossible, or tasks wait for each other in a circle.
        """
        by_name = self._checked(tasks)
        followers: dict[str, list[int]] = {name: [] for name in by_name}
        waits = [len(set(task.after)) for task in tasks]
        for index, task in enumerate(tasks):
            for before in set(task.after):
                followers[before].append(index)
        ready_at = [task.not_before for task in tasks]
        queues: dict[str, list[tuple[int, float, int]]] = {name: [] for name in self.resources}
        free = {name: resource.servers for name, resource in self.resources.items()}
        busy = dict.fromkeys(self.resources, 0.0)
        moved = {n: 0.0 for n, r in self.resources.items() if isinstance(r, Link)}
        spans: list[Span] = []
        # Events are (time, kind, index): servers are freed (0) and tasks end (1) before new ones
        # become ready (2), so that everything that happens at one moment is seen together.
        events = [(ready_at[i], 2, i) for i in range(len(tasks)) if not waits[i]]
        heapq.heapify(events)
        ended = 0
        makespan = 0.0
        while events:
            now = events[0][0]
            while events and events[0][0] == now:
                _, kind, index = heapq.heappop(events)
                task = tasks[index]
                if kind == 0:
                    free[task.on] += 1
                elif kind == 2:
                    heapq.heappush(queues[task.on], (task.priority, ready_at[index], index))
                else:
                    ended += 1
                    makespan = max(makespan, now)
                    for follower in followers[task.name]:
                        waits[follower] -= 1
                        ready_at[follower] = max(ready_at[follower], now)
                        if not waits[follower]:
                            heapq.heappush(events, (ready_at[follower], 2, follower))
            for name, queue in queues.items():
                while free[name] and queue:
                    _, ready, index = heapq.heappop(queue)
                    task, resource = tasks[index], self.resources[name]
                    free[name] -= 1
                    work, latency = task.seconds, 0.0
                    if isinstance(resource, Link):
                        work += task.nbytes / resource.bytes_per_s
                        moved[name] += task.nbytes
                        # What of the latency passed while the task waited for the link is over.
                        latency = max(0.0, ready + resource.latency_s - now)
                    end = now + latency + work
                    busy[name] += work
                    heapq.heappush(events, (end, 0, index))
                    heapq.heappush(events, (end, 1, index))
                    spans.append(
                        Span(
                            task=task.name,
                            on=name,
                            ready=ready,
                            start=now,
                            end=end,
                            nbytes=task.nbytes,
                        )
                    )
        if ended < len(tasks):
            stuck = [task.name for index, task in enumerate(tasks) if waits[index]]
            raise ParameterError("these tasks wait for each other in a circle", value=stuck[:8])
        return Run(
            makespan=makespan,
            spans=tuple(spans),
            busy=busy,
            moved=moved,
            servers={name: resource.servers for name, resource in self.resources.items()},
        )

    def _checked(self, tasks: Sequence[Task]) -> dict[str, Task]:
        by_name = {task.name: task for task in tasks}
        if len(by_name) != len(tasks):
            raise ParameterError("two tasks have the same name")
        for task in tasks:
            if task.on not in self.resources:
                raise ParameterError(
                    f"{task.name} runs on an unknown resource",
                    value=task.on,
                    allowed=", ".join(self.resources),
                )
            if min(task.seconds, task.nbytes, task.not_before) < 0:
                raise ParameterError(f"{task.name} has a negative time or size", value=task)
            if task.nbytes and not isinstance(self.resources[task.on], Link):
                raise ParameterError(f"{task.name} moves bytes over {task.on}, which is no link")
            for before in task.after:
                if before not in by_name:
                    raise ParameterError(f"{task.name} waits for an unknown task", value=before)
        return by_name


def machine(
    profile: DeviceProfile, *, compute: str = "compute", servers: int = 1
) -> EventSimulator:
    """Return a simulator of a profile: one processor, a link "disk", and links between tiers.

    Links between tiers are called "dram>gpu".
    """
    resources: list[Resource] = [Resource(name=compute, servers=servers)]
    if "disk" in profile.tiers:
        disk = profile.tiers["disk"]
        resources.append(
            Link(name="disk", bytes_per_s=disk.read_bytes_per_s, latency_s=disk.latency_s)
        )
    for (source, target), speed in profile.links.items():
        resources.append(Link(name=f"{source}>{target}", bytes_per_s=speed))
    return EventSimulator(resources)
