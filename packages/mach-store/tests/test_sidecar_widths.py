import pytest

from mach.io.inspection import inspect_checkpoint
from mach.io.sidecar_layout import SidecarLayoutError, read_layout
from mach.preflight.sidecar_widths import require_widths


@pytest.mark.parametrize("quantization", ["affine", "mxfp4", "none"])
@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_5_moe", "gpt_oss", "gemma4"])
def test_a_sidecar_fits_the_config_it_was_made_for(checkpoints, family, quantization) -> None:
    directory = checkpoints.engine(family, quantization)
    layout = read_layout(directory / "expert_sidecar")
    require_widths(layout, inspect_checkpoint(directory).shape, "here", biased=family == "gpt_oss")


@pytest.mark.parametrize("field", ["hidden_size", "expert_width"])
def test_another_models_widths_are_refused_with_layer_and_tensor(checkpoints, field) -> None:
    directory = checkpoints.engine()
    layout = read_layout(directory / "expert_sidecar")
    shape = inspect_checkpoint(directory).shape._replace(**{field: 96})
    with pytest.raises(SidecarLayoutError, match=r"here: layer 0: down_proj.* config.json makes it"):
        require_widths(layout, shape, "here", biased=False)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_biases_must_be_there_just_where_the_family_has_them(checkpoints, family) -> None:
    directory = checkpoints.engine(family)
    layout = read_layout(directory / "expert_sidecar")
    with pytest.raises(SidecarLayoutError, match=r"_proj\.bias is (missing|\[)"):
        require_widths(layout, inspect_checkpoint(directory).shape, "here", biased=family != "gpt_oss")
