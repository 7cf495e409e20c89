"""Progress of a command in a log: a line now and then, none of them wrapped."""

import io

import pytest
from rich.console import Console

from haqjax.run.progress import show_phase, show_progress

STEPS = 400


def show(completed, seconds_a_step=3.0):
    """Lines of a log in which so many steps were complete at a time."""
    said, now = io.StringIO(), [0.0]
    with show_progress(Console(file=said, width=20), "searching [ilp]", STEPS, lambda: now[0]) as advance:
        for done in completed:
            now[0] = done * seconds_a_step
            advance(done, f"best after {done}")
    return said.getvalue().splitlines()


def test_a_log_gets_a_line_for_each_tenth_of_the_way():
    first, *lines = show(range(4, STEPS + 1, 4))
    assert first == "searching [ilp], 400 in all ..."
    left = ("18 min", "16 min", "14 min", "12 min", "10 min", "8 min", "6 min", "4 min", "2 min", "0 s")
    assert lines == [
        f"searching [ilp]: {40 * tenth} of 400, about {time} left, best after {40 * tenth}"
        for tenth, time in enumerate(left, 1)
    ]


@pytest.mark.parametrize("completed", [range(1, STEPS + 1), [*range(7, STEPS, 7), STEPS], [*range(150, STEPS), STEPS]])
def test_ten_lines_at_most_and_the_last_is_the_end(completed):
    lines = show(completed, 0.1)[1:]
    tenths = [int(line.split()[2]) * 10 // STEPS for line in lines]
    assert tenths == sorted(set(tenths)) and len(lines) <= 10
    assert lines[-1] == "searching [ilp]: 400 of 400, about 0 s left, best after 400"


def test_a_phase_of_unknown_length_is_a_line():
    said = io.StringIO()
    with show_phase(Console(file=said, width=20), "measuring float, 8 bits, uniform"):
        assert said.getvalue() == "measuring float, 8 bits, uniform ...\n"
    assert said.getvalue().count("\n") == 1


def test_a_quiet_console_says_nothing(capsys):
    with show_phase(Console(quiet=True), "calibrating"), show_progress(Console(quiet=True), "searching", 2) as advance:
        advance(1, "")
    assert capsys.readouterr() == ("", "")
