"""L2MAC: contexts never overflow, files come out alike, and no model brings it down."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from loci.core.agent import Job, Outcome
from loci.errors import EndpointError, MethodError, ParameterError
from loci.methods.recall._l2mac_files import Files
from loci.methods.recall.base import Tools
from loci.methods.recall.l2mac import L2mac
from loci.models.scripted import ScriptedLlm
from loci.run.sandbox import Sandbox
from loci.testing.agents import DictRecords
from loci.testing.programmer import Programmer, make_job

SMALL = Job(goal="One module.", inputs={"steps": ["Write a.py."]})


def run(job: Job, llm: Any, method: L2mac | None = None, **tools: Any) -> tuple[Outcome, Tools]:
    made = Tools(records=DictRecords(), llm=llm, **tools)
    return (method or L2mac()).act(job, made), made


def says(*calls: Mapping[str, Any]) -> ScriptedLlm:
    return ScriptedLlm([json.dumps(call) for call in calls])


def write(path: str, content: str) -> dict[str, str]:
    return {"tool": "write_file", "path": path, "content": content}


DONE = {"tool": "step_done", "summary": "All is written."}


def test_a_file_is_written_and_the_step_summed_up() -> None:
    done, tools = run(SMALL, says(write("a.py", "x = 1\n"), DONE))
    assert done.status == "done" and done.output["files"] == {"a.py": "x = 1\n"}
    assert done.output["summaries"] == ["Step 1 is done; it changed a.py. All is written."]
    assert done.output["checked"] == "syntax" and done.output["calls"] == 2
    assert tools.records.get("file/a.py").value["content"] == "x = 1\n"  # type: ignore[union-attr]


@pytest.mark.parametrize("limit", [(768, 160), (1024, 256), (4096, 700)])
def test_small_contexts_give_the_files_of_a_large_one(limit: tuple[int, int]) -> None:
    context, reserve = limit
    for seed in range(8):
        job = make_job(seed)
        whole, _ = run(job, Programmer(seed), L2mac(context=10**6, reserve=10**5, retries=60))
        done, _ = run(job, Programmer(seed), L2mac(context=context, reserve=reserve, retries=60))
        assert done.status == whole.status == "done"
        assert done.output["files"] == whole.output["files"]
        assert done.output["largest_prompt"] <= context - reserve
        assert whole.output["restarts"] == 0


def test_no_prompt_shows_more_than_names_of_files() -> None:
    prompts: list[str] = []

    class Watched(Programmer):
        def generate(self, messages: Sequence[Mapping[str, str]], **given: Any) -> str:
            prompts.append("\n".join(m["content"] for m in messages))
            return super().generate(messages, **given)

    job = make_job(3, modules=4, notes=0)
    run(job, Watched(3))
    first_of_last = next(p for p in prompts if "Step 4 of 4" in p)
    assert "m0.py (" in first_of_last and "entry_" not in first_of_last


def test_checks_find_what_is_wrong_and_it_is_mended() -> None:
    job = make_job(5, modules=5, notes=0)
    done, _ = run(job, Programmer(5, bugs=1.0), sandbox=Sandbox())
    assert done.status == "done" and done.output["checked"] == "syntax and tests"
    files = done.output["files"]
    assert Sandbox().run(files, job.inputs["command"], 20).is_good
    blind = replace(job, inputs={**job.inputs, "checks": "none"})
    missed, _ = run(blind, Programmer(5, bugs=1.0), sandbox=Sandbox())
    assert not Sandbox().run(missed.output["files"], job.inputs["command"], 20).is_good


def test_code_that_never_ends_is_told_to_the_model() -> None:
    loop = write("a.py", "while True: pass\n")
    fixed = write("a.py", "print('fine')\n")
    job = Job(goal="x", inputs={"steps": ["Write a.py."], "command": ["a.py"]})
    llm = says(loop, DONE, fixed, DONE)
    done, _ = run(job, llm, L2mac(timeout=3.0), sandbox=Sandbox())
    assert done.status == "done" and done.output["files"]["a.py"] == "print('fine')\n"
    assert "ran longer than 3 s" in llm.calls[2].messages[-1]["content"]


def test_a_step_that_fails_leaves_the_files_as_they_were() -> None:
    first, second = write("a.py", "x = 1\n"), write("a.py", "x = (\n")
    job = Job(goal="x", inputs={"steps": ["Write a.py.", "Change a.py."]})
    tries = [write("b.py", f"{n}\n") for n in range(4)]
    llm = says(first, DONE, second, *tries)
    done, tools = run(job, llm, L2mac(retries=5))
    assert done.status == "failed" and "step 2: the step took 5 replies" in done.why
    assert done.output["files"] == {"a.py": "x = 1\n"}
    assert set(tools.records.all("file/")) == {"file/a.py"}


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("I would rather talk about the weather.", "were no call"),
        ('{"tool": "format_disk"}', "were no call"),
        ('{"tool": "write_file", "path": "a.py"', "were no call"),
        ('{"tool": "write_file", "path": "a.py", "content": "\\ud800"}', "were no call"),
        ('["write_file"]', "were no call"),
        ("", "were no call"),
        ('{"tool": "view_files", "paths": ["none.py"]}', "repeats itself"),
        ('{"tool": "write_file", "path": "a.py", "content": "x = ("}', "repeats itself"),
        ('{"tool": "step_done", "summary": ""}', None),
    ],
)
def test_a_model_that_loops_or_talks_nonsense_is_bounded(reply: str, why: str | None) -> None:
    done, tools = run(SMALL, ScriptedLlm([reply] * 100))
    assert done.status == ("done" if why is None else "failed")
    assert why is None or why in done.why
    assert len(done.steps) <= 31 and not done.output["files"]
    assert tools.records.get("program") is not None


@pytest.mark.parametrize("path", ["../x.py", "/etc/x.py", "a/../../x.py", "~/x", "a b.py", "C:x"])
def test_files_outside_the_workspace_are_refused(path: str) -> None:
    llm = says(write(path, "x"), {"tool": "delete_files", "paths": [path]}, DONE)
    done, _ = run(SMALL, llm)
    assert done.output["files"] == {}
    assert "refused: the path" in llm.calls[1].messages[-1]["content"]
    assert "refused: the path" in llm.calls[2].messages[-1]["content"]
    for name in ("files", "tests"):
        with pytest.raises(ParameterError, match="a path of l2mac"):
            run(replace(SMALL, inputs={**SMALL.inputs, name: {path: "x"}}), llm)


def test_given_tests_cannot_be_changed() -> None:
    job = replace(SMALL, inputs={**SMALL.inputs, "tests": {"test_a.py": "import a\n"}})
    llm = says(write("test_a.py", "pass\n"), {"tool": "delete_files", "paths": ["test_a.py"]}, DONE)
    done, _ = run(job, llm)
    assert done.output["files"] == {"test_a.py": "import a\n"}
    assert "stays as it is" in llm.calls[1].messages[-1]["content"]


def test_lines_are_read_and_replaced_precisely() -> None:
    files = Files({"a.py": "one\ntwo\nthree\n"})
    count = len
    view = {"tool": "view_files", "paths": ["a.py"], "from": 2, "to": 3}
    assert files.view(view, count, 100) == "--- a.py, lines 2 to 3 of 3\ntwo\nthree"
    assert "view it from line 2)" in files.view({"paths": ["a.py"]}, count, 5)
    replaced = {"tool": "replace_lines", "path": "a.py", "from": 2, "to": 2, "content": "2\n2b"}
    assert files.write(replaced) == "wrote a.py, 4 lines"
    assert files.texts["a.py"] == "one\n2\n2b\nthree\n"
    assert "has lines 1 to 4" in files.write({**replaced, "from": 5, "to": 9})
    assert files.write({"tool": "append_file", "path": "b", "content": "x"}) == "wrote b, 1 lines"
    big = {"tool": "write_file", "path": "c", "content": "x" * 200_001}
    assert files.write(big).startswith("refused: at most")


def test_a_server_that_is_away_stops_the_job_and_it_goes_on_later() -> None:
    class Away(Programmer):
        def generate(self, *given: Any, **more: Any) -> str:
            if self.calls == 4:
                raise EndpointError("http://... did not answer")
            return super().generate(*given, **more)

    job = make_job(2, modules=3, notes=0)
    stopped, tools = run(job, Away(2))
    assert stopped.status == "stopped" and "did not answer" in stopped.why
    done = L2mac().act(job, replace(tools, llm=Programmer(2)))
    whole, _ = run(job, Programmer(2))
    assert done.status == "done" and done.output == whole.output


def test_an_instruction_too_long_for_the_context_is_an_error_with_figures() -> None:
    job = Job(goal="x", inputs={"steps": ["word " * 3000]})
    with pytest.raises(MethodError, match=r"take 3,\d+ tokens.*fewer"):
        run(job, Programmer(), L2mac(context=1024, reserve=256))
    with pytest.raises(MethodError, match="none was given"):
        run(SMALL, None)
    with pytest.raises(ParameterError, match="reserve must be <"):
        run(SMALL, Programmer(), L2mac(context=512, reserve=700))


def test_the_model_makes_the_program_where_none_is_given() -> None:
    plan = {"steps": ["Write a.py.", "Write b.py."]}
    llm = says(plan, write("a.py", "1\n"), DONE, write("b.py", "2\n"), DONE)
    done, _ = run(Job(goal="Two modules."), llm)
    assert done.output["program"] == plan["steps"] and set(done.output["files"]) == {"a.py", "b.py"}
    nonsense, _ = run(Job(goal="Two modules."), ScriptedLlm(["nothing"] * 9))
    assert nonsense.status == "failed" and "no call" in nonsense.why


def test_a_new_goal_goes_on_from_the_files_that_are_there() -> None:
    _, tools = run(SMALL, says(write("a.py", "x = 1\n"), DONE))
    llm = says({"tool": "view_files", "paths": ["a.py"]}, write("a.py", "x = 2\n"), DONE)
    more = L2mac().act(
        Job(goal="Change it.", inputs={"steps": ["Make x 2."]}), replace(tools, llm=llm)
    )
    assert more.output["files"] == {"a.py": "x = 2\n"}
    assert "x = 1" in llm.calls[1].messages[-1]["content"]
