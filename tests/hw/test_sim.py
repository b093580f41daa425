"""The event simulator: cases worked by hand, published schedules, and laws that always hold."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loci.errors import ParameterError
from loci.hw.profiles import load_profile
from loci.hw.sim import EventSimulator, Link, Resource, Run, Task, machine

CPU = Resource(name="cpu")
DISK = Link(name="disk", bytes_per_s=100.0, latency_s=0.5)


def times(run: Run) -> dict[str, tuple[float, float]]:
    return {span.task: (span.start, span.end) for span in run.spans}


def test_reading_one_block_ahead_hides_all_but_the_first_read() -> None:
    tasks = []
    for i in range(4):
        before = (f"use{i - 2}",) if i > 1 else ()  # two buffers
        tasks.append(Task(name=f"read{i}", on="disk", nbytes=100, after=before))
        uses = (f"read{i}", f"use{i - 1}") if i else ("read0",)
        tasks.append(Task(name=f"use{i}", on="cpu", seconds=2, after=uses))
    run = EventSimulator([CPU, Link(name="disk", bytes_per_s=100)]).run(tasks)
    assert run.makespan == 1 + 4 * 2
    assert run.utilisation("cpu") == pytest.approx(8 / 9)
    assert run.moved == {"disk": 400} and run.busy["disk"] == 4


def test_a_link_serves_in_the_order_of_asking_and_latencies_overlap() -> None:
    tasks = [Task(name=name, on="disk", nbytes=100) for name in "ab"]
    tasks.append(Task(name="late", on="disk", nbytes=100, not_before=10))
    spans = EventSimulator([DISK]).run(tasks)
    assert times(spans) == {"a": (0, 1.5), "b": (1.5, 2.5), "late": (10, 11.5)}


def test_priority_goes_first_but_interrupts_nothing() -> None:
    tasks = [
        Task(name="long", on="cpu", seconds=5, priority=1),
        Task(name="low", on="cpu", seconds=1, priority=1),
        Task(name="high", on="cpu", seconds=1, not_before=1),
    ]
    run = EventSimulator([CPU]).run(tasks)
    assert times(run) == {"long": (0, 5), "high": (5, 6), "low": (6, 7)}
    assert run.span("high").ready == 1


def test_servers_work_side_by_side() -> None:
    tasks = [Task(name=str(i), on="pool", seconds=1) for i in range(5)]
    run = EventSimulator([Resource(name="pool", servers=2)]).run(tasks)
    assert run.makespan == 3 and run.utilisation("pool") == pytest.approx(5 / 6)


def test_nothing_to_do_takes_no_time() -> None:
    run = EventSimulator([CPU]).run([])
    assert (run.makespan, run.utilisation("cpu")) == (0, 0)
    empty = EventSimulator([CPU]).run([Task(name="a", on="cpu"), Task(name="b", on="cpu")])
    assert empty.makespan == 0 and len(empty.spans) == 2


def cluster_tasks(t_io: float, *, barrier_per_matrix: bool) -> list[Task]:
    """4 layers of 3 matrices of 8 clusters, of which 4 are cached; layers end with a barrier."""
    tasks: list[Task] = []
    done: tuple[str, ...] = ()
    for layer in range(4):
        mine: list[str] = []
        for matrix in range(3):
            here: list[str] = []
            for cluster in range(8):
                name = f"{layer}.{matrix}.{cluster}"
                after = done
                if cluster >= 4:
                    tasks.append(Task(name=f"io{name}", on="io", seconds=t_io, after=done))
                    after = (*done, f"io{name}")
                tasks.append(Task(name=name, on="threads", seconds=1, after=after))
                here.append(name)
            mine += here
            if barrier_per_matrix:
                done = tuple(here)
        done = tuple(mine)
    return tasks


@pytest.mark.parametrize(
    ("t_io", "by_matrix", "by_cluster"),
    [(0.4, 31.2, 24.0), (0.5, 36, 28), (1.0, 60, 52), (2.0, 108, 100)],
)
def test_pipeline_of_neuron_clusters(t_io: float, by_matrix: float, by_cluster: float) -> None:
    """PowerInfer-2 (arXiv 2406.06282): a barrier per layer beats one per matrix."""
    threads = EventSimulator([Resource(name="threads", servers=4), Resource(name="io")])
    for barrier, expected in ((True, by_matrix), (False, by_cluster)):
        run = threads.run(cluster_tasks(t_io, barrier_per_matrix=barrier))
        assert run.makespan == pytest.approx(expected)
        assert run.busy["threads"] == 96


TASKS = st.lists(
    st.tuples(
        st.sampled_from(["cpu", "disk", "wire"]),
        st.integers(0, 5),
        st.integers(0, 400),
        st.sets(st.integers(0, 20), max_size=3),
        st.integers(0, 10),
        st.integers(0, 2),
    ),
    max_size=20,
)
MACHINE = EventSimulator(
    [Resource(name="cpu", servers=2), DISK, Link(name="wire", bytes_per_s=50, servers=2)]
)


def made(rows: list[tuple[str, int, int, set[int], int, int]]) -> list[Task]:
    return [
        Task(
            name=str(index),
            on=on,
            seconds=seconds if on == "cpu" else 0,
            nbytes=0 if on == "cpu" else nbytes,
            after=tuple(str(each) for each in after if each < index),
            not_before=begin,
            priority=priority,
        )
        for index, (on, seconds, nbytes, after, begin, priority) in enumerate(rows)
    ]


@settings(max_examples=200, deadline=None)
@given(rows=TASKS)
def test_laws_of_every_schedule(rows: list[tuple[str, int, int, set[int], int, int]]) -> None:
    tasks = made(rows)
    run = MACHINE.run(tasks)
    spans = {span.task: span for span in run.spans}
    assert set(spans) == {task.name for task in tasks}
    assert MACHINE.run(tasks) == run
    for task in tasks:
        span = spans[task.name]
        assert 0 <= task.not_before <= span.ready <= span.start <= span.end <= run.makespan
        assert all(spans[before].end <= span.ready for before in task.after)
    for name, resource in MACHINE.resources.items():
        mine = [span for span in run.spans if span.on == name]
        for span in mine:  # never more at once than servers
            during = [x for x in mine if x.start <= span.start < x.end]
            assert len(during) <= resource.servers
        if isinstance(resource, Link):
            assert run.moved[name] == sum(t.nbytes for t in tasks if t.on == name)
            most = run.makespan * resource.bytes_per_s * resource.servers
            assert run.moved[name] <= most + 1e-6
            for span in mine:
                arrives = span.ready + resource.latency_s + span.nbytes / resource.bytes_per_s
                assert span.end >= arrives - 1e-9
        assert 0 <= run.utilisation(name) <= 1 + 1e-12
    # A free server never leaves ready work waiting.
    for span in run.spans:
        if span.start > span.ready:
            rivals = [x for x in run.spans if x.on == span.on and x.start <= span.ready < x.end]
            same_time = [x for x in run.spans if x.on == span.on and x.start == span.ready]
            servers = MACHINE.resources[span.on].servers
            assert len(rivals) >= servers or same_time


@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=10))
def test_a_chain_on_one_link_takes_the_sum(sizes: list[int]) -> None:
    tasks = [
        Task(name=str(i), on="disk", nbytes=n, after=(str(i - 1),) if i else ())
        for i, n in enumerate(sizes)
    ]
    run = EventSimulator([DISK]).run(tasks)
    assert run.makespan == pytest.approx(sum(0.5 + n / 100 for n in sizes))


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (Task(name="a", on="gpu"), "unknown resource"),
        (Task(name="a", on="cpu", seconds=-1), "negative"),
        (Task(name="a", on="cpu", nbytes=5), "no link"),
        (Task(name="a", on="cpu", after=("b",)), "unknown task"),
        (Task(name="a", on="cpu", after=("a",)), "circle"),
    ],
)
def test_impossible_tasks_are_refused(task: Task, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        EventSimulator([CPU]).run([task])


def test_impossible_machines_are_refused() -> None:
    with pytest.raises(ParameterError):
        EventSimulator([CPU, CPU])
    with pytest.raises(ParameterError):
        Resource(name="x", servers=0)
    with pytest.raises(ParameterError):
        Link(name="x", bytes_per_s=0)
    with pytest.raises(ParameterError, match="same name"):
        EventSimulator([CPU]).run([Task(name="a", on="cpu")] * 2)
    with pytest.raises(ParameterError, match="no such task"):
        EventSimulator([CPU]).run([]).span("a")


def test_a_profile_becomes_a_machine() -> None:
    phone = machine(load_profile("phone-snapdragon-8-gen-3"))
    run = phone.run([Task(name="layer", on="disk", nbytes=4e9)])
    assert run.makespan == pytest.approx(1.0, rel=1e-4)
    server = machine(load_profile("h200"), servers=2)
    assert set(server.resources) == {"compute", "dram>gpu"}
