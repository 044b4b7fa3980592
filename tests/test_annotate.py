"""The Gemini client against a local server that speaks the API; no network, no real key."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pandas as pd
import pytest

from cpllm import answers, cli
from cpllm.data import annotate, encoding, gemini, manifests, text
from tests.conftest import made_frames

pytest.importorskip("google.genai", reason="extra `gemini` is not installed")
SECRET = "made-up-key-7c1f"
TEXT = "A square moves.  Its style is synthetic.\nThe technical quality is good."


class Gemini(BaseHTTPRequestHandler):
    """Answers of the server's `script`, then 200 for ever; keeps what it was sent."""

    def do_POST(self):
        held = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.seen.append((time.monotonic(), self.path, dict(self.headers),
                                     json.loads(held)))
            code = self.server.script.pop(0) if self.server.script else self.server.usual
        time.sleep(self.server.delay)
        answer = {"candidates": [{"content": {"role": "model", "parts": [{"text": TEXT}]},
                                  "finishReason": code if isinstance(code, str) else "STOP"}],
                  "usageMetadata": {"promptTokenCount": 321, "candidatesTokenCount": 17}}
        if not isinstance(code, str) and code != 200:
            told = f"no {code} for {self.headers['x-goog-api-key']}"
            answer = {"error": {"code": code, "message": told, "status": "BAD"}}
        data = json.dumps(answer).encode()
        self.send_response(200 if isinstance(code, str) else code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    made = ThreadingHTTPServer(("127.0.0.1", 0), Gemini)
    made.lock, made.seen, made.script, made.delay, made.usual = threading.Lock(), [], [], 0, 200
    made.url = f"http://127.0.0.1:{made.server_port}"
    threading.Thread(target=made.serve_forever, daemon=True).start()
    monkeypatch.setenv("GEMINI_API_KEY", SECRET)
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", made.url)
    monkeypatch.setattr(gemini, "RETRY", {"attempts": 3, "initial_delay": 0.05, "jitter": 0.05})
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def place(tmp_path):
    """Four different training clips, one of a test set, and their manifest."""
    names = [f"c{i}" for i in range(5)]
    for i, name in enumerate(names):
        encoding.encode(made_frames(seed=i), tmp_path / f"{name}.mp4", 31, 25)
    table = pd.DataFrame({
        "video": names, "path": [f"{n}.mp4" for n in names], "scene": names, "source": names,
        "family": "x", "split": ["train"] * 4 + ["test"], "dataset": "x",
        "role": "original", "mos": 50, "quality": 50.0, "width": 128, "height": 96})
    manifests.write(table, tmp_path / "manifest.csv")
    return tmp_path


def lines(place):
    return [json.loads(line) for line in (place / "descriptions.jsonl").read_text().splitlines()]


def run(place, *words):
    return cli.main(["annotate", str(place / "manifest.csv"), "--rpm", "6000", *words])


def test_every_clip_is_asked_with_the_papers_prompt_and_its_key_frames(server, place, capsys):
    assert run(place, "--yes") == 0
    assert "4 requests" in (out := capsys.readouterr().out) and "4 of 4 clips described" in out
    assert sorted(line["video"] for line in lines(place)) == ["c0", "c1", "c2", "c3"]
    assert {line["text"] for line in lines(place)} == {" ".join(TEXT.split())}
    assert {line["model"] for line in lines(place)} == {gemini.MODEL}
    _, path, headers, body = server.seen[0]
    assert path.endswith(f"models/{gemini.MODEL}:generateContent")
    assert headers["x-goog-api-key"] == SECRET
    parts = body["contents"][0]["parts"]
    assert parts[-1]["text"] == text.DESCRIBE
    assert [p["inlineData"]["mime_type"] for p in parts[:-1]] == ["image/jpeg"] * 5


def test_a_second_run_asks_nothing_and_a_changed_clip_alone_again(server, place):
    run(place, "--yes")
    assert run(place, "--yes") == 0 and len(server.seen) == 4
    (place / "descriptions.jsonl").write_text(
        "".join(json.dumps({**line, "video": "old"}) + "\n" for line in lines(place)))
    encoding.encode(made_frames(seed=9), place / "c2.mp4", 31, 25)
    assert run(place, "--yes") == 0
    assert len(server.seen) == 5  # three clips are known by their content under another name
    assert run(place, "--yes", "--model", "gemini-2.5-flash-lite") == 0
    assert len(server.seen) == 9


def test_busy_and_broken_answers_are_asked_again_later(server, place):
    server.script = [429, 503]
    assert run(place, "--yes", "--workers", "1") == 0
    times = [seen[0] for seen in server.seen]
    assert len(times) == 6
    assert times[1] - times[0] > 0.04 and times[2] - times[1] > 0.09  # 0.05, 0.1 and more


def test_what_stays_refused_is_named_and_the_rest_go_on(server, place, capsys):
    server.script = [400, 200, "SAFETY"]
    (place / "c3.mp4").write_bytes(b"")
    assert run(place, "--yes", "--workers", "1") == 1
    out, err = capsys.readouterr()
    assert "c0.mp4: 400 BAD" in err and "SAFETY" in err
    assert "c3.mp4: expected a video file, this one is empty" in err
    assert "1 of 4 clips described; 3 not" in out
    assert [line["video"] for line in lines(place)] == ["c1"]


def test_a_refused_key_stops_the_run_and_never_shows(server, place, capsys, monkeypatch):
    monkeypatch.setattr(gemini, "GIVE_UP", 2)
    server.usual = 403
    assert run(place, "--yes", "--workers", "1") == 2
    out, err = capsys.readouterr()
    assert "2 requests in a row failed" in err and "no 403" in err
    assert "described" not in out.splitlines()[-1]
    assert SECRET not in out + err


def test_the_key_is_in_no_file_and_no_message(server, place, capsys, monkeypatch):
    server.script = [200, 400]
    run(place, "--yes", "--workers", "1")
    out, err = capsys.readouterr()
    assert SECRET not in out + err
    assert not any(SECRET.encode() in p.read_bytes() for p in place.rglob("*") if p.is_file())
    assert gemini._hidden(f"bad\nkey {SECRET}!") == "bad key ***!"
    for name in gemini.KEYS:
        monkeypatch.delenv(name, raising=False)
    assert run(place, "--yes", "--out", str(place / "none.jsonl")) == 2
    assert "GEMINI_API_KEY" in capsys.readouterr().err


def test_pairs_are_asked_in_both_orders_and_answered_in_words(server, place, monkeypatch):
    pairs = pd.DataFrame({"better": ["c0.mp4", "c2.mp4"], "worse": ["c1.mp4", "c3.mp4"]})
    rates = {}
    for words in ("The first.", "Second!", "Both the first and the second are good.", "Neither."):
        monkeypatch.setattr(sys.modules[__name__], "TEXT", words)
        rates[words] = answers.ask(pairs, answers.by_gemini(place, rpm=60000))
    assert [(r["first"].tolist(), r["second"].tolist()) for r in rates.values()] == [
        ([1, 1], [1, 1]), ([-1, -1], [-1, -1]), ([0, 0], [0, 0]), ([0, 0], [0, 0])]
    orders = [[p["inlineData"]["data"] for p in seen[3]["contents"][0]["parts"][:-1]]
              for seen in server.seen[:4]]
    assert orders[0] == orders[2][::-1] and orders[1] == orders[3][::-1]
    assert server.seen[0][3]["contents"][0]["parts"][-1]["text"] == text.COMPARE


def test_requests_keep_the_rate_whatever_the_number_of_threads(server, place, monkeypatch):
    """On a clock that stands still: each of four threads waits for its own turn."""
    waits = []
    clock = SimpleNamespace(monotonic=lambda: 100.0, sleep=waits.append)
    monkeypatch.setattr(gemini, "time", clock)
    cli.main(["annotate", str(place / "manifest.csv"), "--yes", "--rpm", "300", "--workers", "4"])
    assert len(server.seen) == 4 and sorted(waits) == pytest.approx([0, 0.2, 0.4, 0.6])


def test_a_killed_run_goes_on_with_what_is_missing(server, place):
    """SIGKILL in the middle; the torn line that it may leave is cut off."""
    server.delay = 0.3
    command = [sys.executable, "-m", "cpllm.cli", "annotate", str(place / "manifest.csv"),
               "--yes", "--rpm", "6000", "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    out, deadline = place / "descriptions.jsonl", time.monotonic() + 120
    while not (out.exists() and out.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    asked, kept = len(server.seen), len(lines(place))
    with out.open("a") as file:
        file.write('{"key": "torn')
    assert run(place, "--yes", "--workers", "1") == 0
    assert sorted(line["video"] for line in lines(place)) == ["c0", "c1", "c2", "c3"]
    assert len(server.seen) == asked + 4 - kept


def test_damage_that_is_no_torn_end_is_refused(tmp_path):
    (tmp_path / "d.jsonl").write_text("{}\nnonsense\n{}\n")
    with pytest.raises(ValueError, match=r"d\.jsonl: expected one JSON object a line"):
        gemini.read(tmp_path / "d.jsonl")


def test_cost_is_said_before_anything_is_spent(server, place, capsys, monkeypatch):
    assert run(place, "--dry-run", "--price", "10", "100") == 0
    # Four clips of 128 × 96: 5 frames of 258 tokens and the prompt; 100 tokens back
    dollars = 4 * ((5 * 258 + 60) * 10 + 100 * 100) / 1e6
    assert f"about 5,400 tokens in, {dollars:.2f} USD" in capsys.readouterr().out
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert run(place) == 2 and "--yes" in capsys.readouterr().err
    assert run(place, "--model", "other") == 2 and "--price" in capsys.readouterr().err
    assert not server.seen


@pytest.mark.parametrize(("size", "tokens"), [((96, 128), 258), ((540, 960), 6 * 258),
                                              ((2160, 3840), 6 * 258), ((1920, 1080), 6 * 258)])
def test_image_tokens_follow_the_documented_tiles(size, tokens):
    """540 × 960: unit 360, so 2 × 3 tiles; larger frames are fitted within 540 × 1080 first."""
    assert gemini._image_tokens(*size) == tokens


def test_descriptions_reach_training_rows(server, place):
    table = manifests.read(place / "manifest.csv")
    with pytest.raises(ValueError, match=r"4 of 4 training clips have no description \(first: c0"):
        annotate.attach(table, place / "descriptions.jsonl")
    run(place, "--yes")
    rows = annotate.attach(table, place / "descriptions.jsonl").to_dict("records")
    assert annotate.describe(rows[0]) == " ".join(TEXT.split())


def test_a_brought_description_is_captioned_by_its_first_two_sentences():
    told = {"description": "A dog runs. It is filmed by hand. The quality is good."}
    assert annotate.caption(told) == annotate.portray(told) == "A dog runs. It is filmed by hand"


def test_a_missing_clip_costs_nothing(server, place):
    (place / "c1.mp4").unlink()
    assert run(place, "--yes") == 1
    assert len(server.seen) == 3
