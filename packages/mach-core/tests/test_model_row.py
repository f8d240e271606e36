from mach.discovery.model_row import ModelRow, merge_rows


def test_a_model_here_and_in_the_catalogue_is_one_row() -> None:
    local = [
        ModelRow("model-a", "local", None, True, 10, "/a"),
        ModelRow("org/b", "local", "gemma4", True, 20, "/b"),
    ]
    remote = [
        ModelRow("org/model-a", "remote", "qwen3_moe", False, 11, None),
        ModelRow("org/b", "remote", "gpt_oss", False, 21, None),
        ModelRow("org/c", "remote", "llama", False, 30, None),
    ]
    merged = merge_rows(local, remote)
    assert [
        (row.name, row.source, row.model_type, row.installed, row.size, row.supported) for row in merged
    ] == [
        ("model-a", "local+remote", "qwen3_moe", True, 10, True),
        ("org/b", "local+remote", "gemma4", True, 20, True),
        ("org/c", "remote", "llama", False, 30, False),
    ]
