"""The doctor as a person calls it: terms, another set beside, a set that is not there."""

from __future__ import annotations


def test_terms_and_pictures_of_another_set(launch, market_root, people_root, tmp_path):
    doctor = ["doctor", "--dataset=market1501", f"--root={market_root}"]
    lines = launch("prepare_data.py", *doctor, f"--against=folder={people_root}").fine().out.splitlines()
    assert "market1501 is obtained from its authors (ICCV 2015), for research; the people in it were not asked" in lines
    assert any(line.startswith("144 files are in train of market1501 and in train of folder (for example") for line in lines)
    assert not any(line.startswith("problem: ") and "in train of" in line for line in lines)
    missing = launch("prepare_data.py", "doctor", "--dataset=msmt17", f"--root={tmp_path}")
    missing.mistake("has no folder train, test", "msmt17 is obtained from its owners (CVPR 2018) on request by e-mail")
