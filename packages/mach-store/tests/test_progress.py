from mach_store.prune.progress import ByteCounter, Progress


def test_bytes_are_counted_once_they_are_taken() -> None:
    seen: list[Progress] = []
    counter = ByteCounter(2, 30, seen.append)
    records = counter.records([[b"abc", memoryview(b"de")], [b"fgh", b"ij"]])
    assert next(records) == [b"abc", memoryview(b"de")]
    assert seen == []
    assert list(records) == [[b"fgh", b"ij"]]
    counter.add(0, layers=1)
    assert b"".join(counter.chunks([b"1234", b"5"])) == b"12345"
    assert seen == [
        Progress(0, 2, 5, 30, 0),
        Progress(0, 2, 10, 30, 0),
        Progress(1, 2, 10, 30, 0),
        Progress(1, 2, 14, 30, 0),
        Progress(1, 2, 15, 30, 0),
    ]
    counter.add(10, layers=1, taken_up=True)
    assert seen[-1] == Progress(2, 2, 25, 30, 10)


def test_nobody_needs_to_listen() -> None:
    assert list(ByteCounter(1, 1, None).chunks([b"x"])) == [b"x"]
