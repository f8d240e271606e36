import io
import json
import logging
import os
import threading

import pytest

from mach_server.log_output import LogOutput, logging_to

FACTS = {"id": "a", "status": 200}


def written(form: str) -> list[str]:
    stream = io.StringIO()
    with logging_to(stream, form):
        logging.getLogger("mach.server.requests").info("request", extra={"request_facts": FACTS})
        logging.getLogger("mach.server").warning("take %s", "care")
        logging.getLogger("other").info("nobody asked")
        try:
            raise RuntimeError("deliberate")
        except RuntimeError:
            logging.getLogger("mach.server").exception("it failed")
    return stream.getvalue().splitlines()


def test_text_lines_are_keys_and_values() -> None:
    lines = written("text")
    assert lines[0].startswith("request time=2") and lines[0].endswith("+00:00 id=a status=200")
    assert lines[1] == "mach-serve: WARNING: take care"
    assert lines[2] == "mach-serve: ERROR: it failed" and lines[-1] == "RuntimeError: deliberate"
    assert not any("nobody" in line for line in lines)


def test_json_lines_are_one_object_each() -> None:
    request, warning, error = map(json.loads, written("json"))
    assert request.pop("time") and request == {"level": "info", "event": "request", **FACTS}
    assert (warning["event"], warning["level"], warning["message"]) == ("message", "warning", "take care")
    assert "RuntimeError: deliberate" in error["exception"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_stream_that_nobody_reads_holds_nobody_up_and_loses_lines_in_the_open(form: str) -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream:
        output = LogOutput(stream, form, capacity=50)
        log = logging.Logger("stuck")
        log.addHandler(output)
        while not output.dropped:  # the pipe is full, and so is the queue
            log.warning("x" * 1000)
        texts: list[str] = []
        with os.fdopen(read) as reader:
            reading = threading.Thread(target=lambda: texts.extend(reader))
            reading.start()
            output.close()
            stream.close()
            reading.join(60)
    assert any("log lines were dropped" in line for line in texts)
    if form == "json":
        assert all(json.loads(line) for line in texts)


def test_a_stream_whose_reader_is_gone_ends_the_writing_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    stream = os.fdopen(write, "w")
    output = LogOutput(stream, "text")
    log = logging.Logger("gone")
    log.addHandler(output)
    log.warning("x")
    output.close()
    log.warning("y")
    with pytest.raises(BrokenPipeError):
        stream.close()
