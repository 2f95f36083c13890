"""What the benches share: who is timed when, ratios with their spread, memory, flags, reports, the driver."""

import json
import subprocess
import sys
import time
from pathlib import Path

import bench_report
import bench_timing
import pytest
import run_all
import torch
from bench_report import BenchParser, run_bench
from bench_timing import Ratio, alternate, peak_bytes, ratio
from bench_tracks import load_track
from speed_results import read_speed_ratios

from last_vit.results import read_results

BENCH = Path(bench_timing.__file__).parent


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    yield torch.set_num_threads(1)
    torch.set_num_threads(threads)


def test_sides_take_turns_and_the_first_round_does_not_count():
    calls = []
    times = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=9, calls=2)
    turns = ["".join(calls[i : i + 4]) for i in range(0, len(calls), 4)]
    assert len(turns) == 10
    assert set(turns) == {"aabb", "bbaa"}
    assert {name: len(each) for name, each in times.items()} == {"a": 9, "b": 9}


def test_seconds_are_per_call_and_sleeping_costs_none_on_one_thread(one_thread):
    def work():
        until = time.process_time() + 0.02
        while time.process_time() < until:
            pass

    times = alternate({"work": work, "sleep": lambda: time.sleep(0.05)}, rounds=1, calls=2)
    assert 0.02 <= times["work"][0] < 0.03
    assert times["sleep"][0] < 0.01


def test_two_threads_are_timed_by_the_wall(one_thread):
    torch.set_num_threads(2)
    assert alternate({"sleep": lambda: time.sleep(0.02)}, rounds=1)["sleep"][0] >= 0.02


def test_ratio_is_of_the_medians_with_the_rounds_around_it():
    found = ratio([4.0, 9.0, 6.0], [1.0, 3.0, 4.0])
    assert found == Ratio(median=2.0, low=1.5, high=4.0)
    assert str(found) == "2.00x (1.50 to 4.00)"
    assert found.times(100) == Ratio(200.0, 150.0, 400.0)
    with pytest.raises(ValueError, match="shorter"):
        ratio([1.0, 2.0], [1.0])


def test_peak_memory_counts_what_is_freed_and_what_stays():
    def call():
        kept = torch.zeros(1000, dtype=torch.float32)
        return kept + torch.zeros(4000, dtype=torch.float32).sum()

    peak, left = peak_bytes(call)
    assert left == 4000  # the result alone
    assert 4000 + 16000 <= peak <= 4000 + 16000 + 4000 + 64


def small_bench(args, report):
    report.describe("nothing", dataset=f"{args.size} px", n_images=args.batch, top_k=3)
    report.add("speedup", "ours against theirs", Ratio(1.25, 1.0, 1.5), goal=1.3)
    report.add("share", "our part", Ratio(2.0, 1.0, 3.0), limit=2.5, unit="%")
    report.add("memory", "their memory over ours", 4.0)
    report.keep(bytes=128.0)


def run_small(*argv, for_goal=False):
    parser = BenchParser("bench_small", "Docs.", rounds=2, recorded_rounds=7)
    parser.add_size("--size", 8, 64, "pixels", for_goal=for_goal)
    parser.add_size("--batch", 3, 3, "images")
    run_bench(parser, small_bench, ["--device", "cpu", *argv])


def test_a_run_says_whether_goals_are_met_and_writes_nothing(tmp_path, monkeypatch, capsys, one_thread):
    monkeypatch.chdir(tmp_path)
    run_small()
    head, *lines = (" ".join(line.split()) for line in capsys.readouterr().out.splitlines())
    assert head == "nothing; cpu, 1 threads"
    assert lines[0].endswith("1.25x (1.00 to 1.50) goal at least 1.3x: BELOW GOAL")
    assert lines[1].endswith("2.00% (1.00 to 3.00) goal at most 2.5%: ok")
    assert lines[2].endswith("4.00x")
    assert not list(tmp_path.iterdir())


def test_a_record_holds_every_ratio_at_the_recorded_sizes(tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    run_small("--record", "--threads", "1", "--batch", "5")
    (record,) = read_results(tmp_path / "results")
    assert (record.name, record.table, record.row, record.device) == (
        "bench_small",
        "speed",
        "bench_small",
        "cpu, 1 threads",
    )
    assert (record.dataset, record.n_images) == ("64 px", 5)
    assert {"rounds": 7, "size": 64, "batch": 5, "threads": 1, "top_k": 3}.items() <= record.config.items()
    assert record.config["processor"]
    assert record.metrics["bytes"] == 128
    speedup, share, memory = read_speed_ratios(record)
    assert (speedup.median, speedup.low, speedup.high, speedup.goal, speedup.is_met) == (1.25, 1.0, 1.5, 1.3, False)
    assert (share.words, share.unit, share.goal, share.is_limit, share.is_met) == ("our part", "%", 2.5, True, True)
    assert (memory.low, memory.high, memory.goal) == (4.0, 4.0, None)


def test_goals_are_not_judged_on_smaller_input_than_they_are_stated_for(tmp_path, monkeypatch, capsys, one_thread):
    monkeypatch.chdir(tmp_path)
    run_small(for_goal=True)
    assert "goal at least 1.3x: judged with --size 64" in capsys.readouterr().out
    run_small("--size", "64", for_goal=True)
    assert "BELOW GOAL" in capsys.readouterr().out
    run_small("--size", "9", "--record", for_goal=True)
    assert not any(
        key.endswith(("_goal", "_limit")) for key in json.loads(Path("results/bench_small.json").read_text())["metrics"]
    )


def test_flags_are_checked(capsys):
    for argv, message in ((["--rounds", "0"], "at least 1"), (["--device", "tpu"], "must be auto, cpu, cuda")):
        with pytest.raises(SystemExit) as stop:
            run_small(*argv)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_sizes_of_a_gpu(monkeypatch):
    parser = BenchParser("bench_small", "Docs.", rounds=2)
    parser.add_size("--batch", 1, 4, "images", on_gpu=64)
    assert [parser.parse_args(argv).batch for argv in (["--device", "cpu"], ["--device", "cpu", "--record"])] == [1, 4]
    monkeypatch.setattr(bench_report, "select_device", lambda _: torch.device("cuda"))
    assert [parser.parse_args(argv).batch for argv in ([], ["--record"], ["--batch", "2"])] == [64, 64, 2]


def test_a_bench_without_a_gpu_side_takes_no_gpu(capsys):
    with pytest.raises(SystemExit):
        BenchParser("bench_small", "Docs.", rounds=1, has_gpu_side=False).parse_args(["--device", "cuda"])
    assert "invalid choice" in capsys.readouterr().err


def test_track_modules_are_loaded_once():
    code = (
        "from bench_tracks import load_track; first, _ = load_track('dino', 'dino_schedules', 'dino_options');"
        "import dino_schedules; assert dino_schedules is first; assert load_track('dino', 'dino_schedules') == [first];"
        "print('same')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCH, capture_output=True, text=True, timeout=120)
    assert done.stdout == "same\n", done.stderr
    assert load_track("tools/bench", "bench_timing") == [bench_timing]


def script(folder, name, code):
    (folder / f"{name}.py").write_text(code)


def test_driver_goes_on_after_a_missed_goal_and_a_crash_and_reports_both(tmp_path, monkeypatch, capfd):
    script(
        tmp_path, "bench_fine", "import sys; print(sys.argv[1:]); print('goal at least 2x: ok'); print('  BELOW GOAL')"
    )
    script(tmp_path, "bench_broken", "print('goal at most 3%: ok'); raise RuntimeError('sides differ')")
    script(tmp_path, "bench_last", "print('ABOVE GOAL')")
    names = [run_all.Bench(name) for name in ("bench_fine", "bench_broken", "bench_last")]
    others = [run_all.Bench("bench_gpu", ("cuda",)), run_all.Bench("bench_lib", needs="no_such_library")]
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    monkeypatch.setattr(run_all, "BENCHES", (*names, *others))
    assert run_all.main([]) == 1
    out, err = capfd.readouterr()
    assert "['--device', 'cpu']" in out
    assert "RuntimeError: sides differ" in err
    table = {line.split()[0]: line.split()[1:] for line in out[out.index("goals met") :].splitlines()[1:]}
    assert table["bench_fine"][:2] == ["1", "1"]
    assert table["bench_broken"][:2] == ["1", "0"]
    assert table["bench_broken"][3:] == ["CRASHED", "with", "exit", "status", "1"]
    assert table["bench_last"][:2] == ["0", "1"]
    assert " ".join(table["bench_gpu"]) == "skipped: needs a GPU"
    assert " ".join(table["bench_lib"]) == "skipped: no_such_library is not installed"
    assert table["all"][:2] == ["2", "2"]


def test_driver_without_a_crash_succeeds_and_asks_for_records(tmp_path, monkeypatch, capfd):
    script(tmp_path, "bench_fine", "import sys; print(sys.argv[1:], 'BELOW GOAL')")
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    monkeypatch.setattr(run_all, "BENCHES", (run_all.Bench("bench_fine"),))
    assert run_all.main(["--record"]) == 0
    assert "['--device', 'cpu', '--record']" in capfd.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_driver_refuses_the_gpu_part_without_a_gpu(capsys):
    with pytest.raises(SystemExit) as stop:
        run_all.main(["--gpu"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_driver_knows_every_bench():
    shared = {"bench_timing", "bench_report", "bench_tracks"}
    scripts = {path.stem for path in BENCH.glob("bench_*.py") if "__main__" in path.read_text(encoding="utf-8")}
    assert scripts - shared <= {bench.name for bench in run_all.BENCHES}


def test_processor_is_named(monkeypatch, tmp_path):
    assert bench_report.processor()
