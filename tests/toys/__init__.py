"""Builders that many tests share. No test file imports from another test file."""

import pytest

pytest.register_assert_rewrite("toys.command_line", "toys.pages", "toys.runs", "toys.slurm")
