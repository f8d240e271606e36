from mach_decode.request import GenerationFigures


def figures(**changes) -> GenerationFigures:
    return GenerationFigures(
        **{
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "first_token_seconds": 2.0,
            "decode_seconds": 8.0,
            "expert_hits": 3,
            "expert_misses": 1,
            "bytes_read": 0,
            "read_seconds": 0.0,
        }
        | changes
    )


def test_rates_are_tokens_over_seconds() -> None:
    assert figures().prompt_tokens_per_second == 5.0
    assert figures().decode_tokens_per_second == 0.5
    assert figures().hit_rate == 0.75


def test_rates_are_zero_where_there_is_nothing_to_divide() -> None:
    assert figures(completion_tokens=1, decode_seconds=0.0).decode_tokens_per_second == 0.0
    assert figures(first_token_seconds=0.0).prompt_tokens_per_second == 0.0
    assert figures(expert_hits=0, expert_misses=0).hit_rate == 0.0
