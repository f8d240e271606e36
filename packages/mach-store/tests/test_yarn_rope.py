import math

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.rope_utils import YarnRoPE

from mach_store.yarn_rope import YarnRope

GPT_OSS = {
    "rope_theta": 150000,
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 4096,
}


def rotated(rope, features: int = 64) -> np.ndarray:
    x = mx.random.normal((1, 2, 9, features), key=mx.random.key(3))
    return np.array(rope(x, offset=700))


def test_with_rounded_ends_it_is_mlx_lms() -> None:
    theirs = YarnRoPE(64, base=150000, scaling_factor=32.0, original_max_position_embeddings=4096)
    ours = YarnRope(64, GPT_OSS)
    np.testing.assert_allclose(rotated(ours), rotated(theirs), atol=2e-4)
    assert ours.amplitude == pytest.approx(1.3465735902799727)


def test_without_rounding_the_ramp_ends_where_the_published_model_has_it() -> None:
    # The published 20B: pairs 8.09 to 17.40, which rounding makes 8 to 18.
    frequencies = 1 / np.array(YarnRope(64, GPT_OSS | {"truncate": False})._freqs)
    plain = 150000.0 ** -(np.arange(32) / 32)
    kept = (frequencies / plain - 1 / 32) / (1 - 1 / 32)
    ramp = 1 - np.clip((np.arange(32) - 8.0927) / (17.3980 - 8.0927), 0, 1)
    np.testing.assert_allclose(kept, ramp, atol=1e-3)


def test_features_beyond_the_rotated_ones_pass_unchanged() -> None:
    x = mx.random.normal((1, 2, 3, 24), key=mx.random.key(1))
    out = YarnRope(16, GPT_OSS)(x, offset=5)
    assert mx.array_equal(out[..., 16:], x[..., 16:])
    assert not mx.array_equal(out[..., :16], x[..., :16])


def test_the_amplitude_is_given_or_follows_from_the_factor() -> None:
    assert YarnRope(64, GPT_OSS | {"attention_factor": 1.0}).amplitude == 1.0
    both = YarnRope(64, GPT_OSS | {"mscale": 0.7, "mscale_all_dim": 1.0}).amplitude
    assert both == pytest.approx((0.07 * math.log(32) + 1) / (0.1 * math.log(32) + 1))
    assert YarnRope(64, GPT_OSS | {"factor": 1.0}).amplitude == 1.0


def test_it_has_no_parameters_that_a_checkpoint_would_lack() -> None:
    assert YarnRope(64, GPT_OSS).parameters() == {}
