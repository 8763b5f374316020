import pytest

from emojax.sae import progress
from emojax.sae.progress import Progress


def entry(**changes):
    return {
        "loss": 0.5,
        "reconstruction": 0.25,
        "l0": 64.0,
        "dead": 3,
        "tokens_per_second": 2000,
        "sae_mfu": 0.125,
    } | changes


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_plain_line_comes_now_and_then_and_at_the_end(clock, caplog):
    caplog.set_level("INFO")
    shown = Progress(4000, 0, 500, shown=True)
    for step in (20, 40, 60, 80):
        shown.show(step, entry())
        clock[0] += 15
    shown.show(4000, entry(tokens_per_second=0))
    shown.close()
    assert [record.message for record in caplog.records] == [
        "step 20 of 4,000 (0%), 2,000 tokens/s, 0:16:35 left, FVU 0.2500, L0 64.0, SAE MFU 12.50%",
        "step 60 of 4,000 (2%), 2,000 tokens/s, 0:16:25 left, FVU 0.2500, L0 64.0, SAE MFU 12.50%",
        "step 4,000 of 4,000 (100%), 0 tokens/s, 0:00:00 left, FVU 0.2500, L0 64.0, SAE MFU 12.50%",
    ]


def test_only_the_first_process_prints_and_a_terminal_gets_a_bar(
    clock, caplog, capsys, monkeypatch
):
    caplog.set_level("INFO")
    other = Progress(40, 0, 500, shown=False)
    other.show(40, entry())
    other.close()
    assert not caplog.records
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    bar = Progress(40, 10, 500, shown=True)
    bar.show(40, entry())
    bar.close()
    assert not caplog.records
    said = capsys.readouterr().err
    assert "20.0k/20.0k" in said
    assert "sae_mfu=0.125" in said
