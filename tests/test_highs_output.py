"""What HiGHS leaves on the standard output does not reach it; everything else does."""

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.optimize

from haqjax.allocation import _highs_output
from haqjax.allocation import allocate as allocate_function
from haqjax.allocation._highs_output import hide_highs_output
from haqjax.policies.bounds import make_bounds
from haqjax.policies.budgets import budget
from search_world import make_table

LINE = (
    "HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();\n"  # as the HiGHS of SciPy 1.17 prints it
)


def print_in_c(text):
    ctypes.CDLL(None).printf(b"%s", text.encode())


def test_chatter_is_dropped_and_all_else_is_kept(capfd):
    print_in_c("before\n")
    with hide_highs_output():
        print_in_c(LINE + LINE)
        os.write(1, b"progress 3 of 4")
        print_in_c("\n" + LINE)
    print_in_c("after\n")
    ctypes.CDLL(None).fflush(None)
    told = capfd.readouterr().out
    assert sorted(told.split("\n")) == ["", "after", "before", "progress 3 of 4"]


def test_an_error_passes_through_and_the_output_is_back(capfd):
    with pytest.raises(ValueError, match="no policy"), hide_highs_output():
        raise ValueError("no policy")
    os.write(1, b"still here")
    assert capfd.readouterr().out == "still here"


def test_the_allocation_is_silent(capfd, monkeypatch):
    solve = scipy.optimize.milp
    monkeypatch.setattr(scipy.optimize, "milp", lambda *rows, **options: (print_in_c(LINE), solve(*rows, **options))[1])
    table = make_table(3)
    sensitivity = 4.0 ** -np.arange(1.0, 9.0) * np.ones((3, 2, 1))
    allocate_function(sensitivity, table, make_bounds(3, pinned={}), budget(table, latency=0.5))
    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr().out == ""


def test_a_process_without_standard_output_goes_on():
    load = f"import os, runpy; os.close(1); quiet = runpy.run_path({_highs_output.__file__!r})['hide_highs_output']"
    code = load + "\nwith quiet(): os._exit(7)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7
