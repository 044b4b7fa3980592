"""Our towers against reference results that torch made once (tests/oracle/make_golden.py)."""

from pathlib import Path

import parity
import pytest

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", parity.ORACLES)
def test_our_results_equal_the_reference(name):
    found = parity.differences(name, GOLDEN / name)
    assert max(found.values()) <= 1e-5, found


def test_the_golden_files_stay_small():
    assert sum(f.stat().st_size for f in GOLDEN.rglob("*") if f.is_file()) < 500_000
