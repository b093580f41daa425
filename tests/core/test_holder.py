"""A holder is whatever has the three functions."""

from __future__ import annotations

import pytest

from loci.core.holder import Holder, ShrinkOption, Undo


class Bank:
    """Holds 100 bytes, of which half can go."""

    def __init__(self) -> None:
        self.held = 100

    def nbytes(self) -> dict[str, int]:
        return {"dram": self.held}

    def shrink_options(self) -> list[ShrinkOption]:
        return [ShrinkOption(name="drop half", tier="dram", bytes_freed=self.held // 2)]

    def apply(self, option: ShrinkOption) -> Undo:
        before = self.held
        self.held -= option.bytes_freed

        def undo() -> None:
            self.held = before

        return undo


def test_shape_is_all_that_counts() -> None:
    assert isinstance(Bank(), Holder)
    assert not isinstance(object(), Holder)


def test_an_option_frees_what_it_says_and_can_be_taken_back() -> None:
    bank = Bank()
    [option] = bank.shrink_options()
    undo = bank.apply(option)
    assert bank.nbytes() == {"dram": 100 - option.bytes_freed}
    undo()
    assert bank.nbytes() == {"dram": 100}


def test_options_are_values() -> None:
    option = ShrinkOption(name="x", tier="dram", bytes_freed=1)
    assert option == ShrinkOption(name="x", tier="dram", bytes_freed=1)
    with pytest.raises(AttributeError):
        option.bytes_freed = 2  # type: ignore[misc]
