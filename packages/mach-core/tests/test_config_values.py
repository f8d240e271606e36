import pytest

from mach.errors import ConfigError
from mach.io.config_file import ConfigFields
from mach.io.families.config_values import (
    layer_types,
    other_value,
    rope_parameters,
    rotated_features,
    tied,
)


def fields(**values: object) -> ConfigFields:
    return ConfigFields(values, "config.json")


def test_every_spelling_of_rotary_parameters_gives_the_same() -> None:
    wanted = {"rope_type": "default", "rope_theta": 5e5}
    for spelling in (
        fields(rope_theta=5e5),
        fields(rope_theta=5e5, rope_scaling=None),
        fields(rope_parameters={"rope_theta": 5e5}),
        fields(rope_parameters={"rope_theta": 5e5, "rope_type": "default"}, rope_theta=1e4),
        fields(rope_scaling={"type": "default"}, rope_theta=5e5),
        fields(rope_scaling={"type": "mrope"}, rope_theta=5e5),
    ):
        assert rope_parameters(spelling).values == wanted


def test_yarn_takes_its_original_context_from_the_models_where_it_has_none() -> None:
    yarn = {"rope_type": "yarn", "factor": 4}
    found = rope_parameters(fields(rope_scaling=yarn, rope_theta=1e4, max_position_embeddings=512))
    assert found.values["original_max_position_embeddings"] == 512
    assert "original_max_position_embeddings" not in yarn, "the config itself is left alone"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "rope_theta is missing"),
        ({"rope_theta": "much"}, "rope_theta is (a JSON string|outside)"),
        ({"rope_theta": float("inf")}, "rope_theta is (a JSON string|outside)"),
        (
            {"rope_parameters": {"rope_theta": 2}, "rope_scaling": {"factor": 2}},
            "contradicts rope_parameters",
        ),
        ({"rope_theta": 1}, "rope_theta is outside 1.001 to"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 2, "factor": 2}}, "original_max"),
        ({"rope_scaling": {"rope_type": "yarn"}, "rope_theta": 2, "max_position_embeddings": 9}, "factor is"),
        (
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 2,
                    "original_max_position_embeddings": 4,
                    "beta_fast": 0,
                }
            },
            "rope_scaling.rope_theta is missing",
        ),
        (
            {
                "rope_theta": 2,
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 2,
                    "original_max_position_embeddings": 4,
                    "beta_fast": 0,
                },
            },
            "rope_scaling.beta_fast is outside 1e-06",
        ),
    ],
)
def test_impossible_rotary_parameters_are_named(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rope_parameters(fields(**values))


def test_layer_types_are_as_many_as_layers_and_known() -> None:
    kinds = ("a", "b")
    assert layer_types(fields(num_hidden_layers=3), kinds, kinds) == ["a", "b", "a"]
    assert layer_types(fields(num_hidden_layers=2, layer_types=["b", "b"]), kinds, kinds) == ["b", "b"]
    with pytest.raises(ConfigError, match="has 2 items for 3 layers"):
        layer_types(fields(num_hidden_layers=3, layer_types=["a", "b"]), kinds, kinds)
    with pytest.raises(ConfigError, match="must hold a and b alone"):
        layer_types(fields(num_hidden_layers=1, layer_types=["c"]), kinds, kinds)


def test_ends_are_tied_wherever_the_config_says_so_but_not_both_ways() -> None:
    said = fields(tie_word_embeddings=True)
    assert tied(said, fields(), False)
    assert tied(fields(), said, False)
    assert tied(said, said, False)
    assert not tied(fields(), fields(), False)
    with pytest.raises(ConfigError, match="contradicts"):
        tied(said, fields(tie_word_embeddings=False), False)


def test_a_value_that_is_not_computed_is_named_with_what_is() -> None:
    allowed = {"flag": (False,), "limit": (7.0, 7)}
    assert other_value(fields(), allowed) is None
    assert other_value(fields(flag=None, limit=7), allowed) is None
    assert other_value(fields(flag=0), allowed) == "config.json: flag is '0'; only false is computed"
    assert "limit is '8.0'; only 7.0 or 7" in str(other_value(fields(limit=8.0), allowed))


def test_rotated_features_are_pairs_within_the_head() -> None:
    assert rotated_features(fields(), 64) == 64
    assert rotated_features(fields(partial_rotary_factor=0.25), 64) == 16
    for factor in (0, 0.05, 0.75):
        with pytest.raises(ConfigError, match="of 4 features rotated"):
            rotated_features(fields(partial_rotary_factor=factor), 4)
    with pytest.raises(ConfigError, match="partial_rotary_factor is outside 0 to 1"):
        rotated_features(fields(partial_rotary_factor=1.5), 4)
