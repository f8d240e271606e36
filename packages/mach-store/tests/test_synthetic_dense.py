import mlx.core as mx
from mlx_lm.utils import load_model

from mach_store.synthetic_dense import dense_config, write_dense_checkpoint


def test_mlx_lm_loads_it_and_the_same_seed_gives_the_same_weights(tmp_path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_dense_checkpoint(
            tmp_path / name, dense_config("llama"), tokenizer_from=tmp_path, dtype=mx.float16, seed=seed
        )
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    model, _ = load_model(tmp_path / "a")
    assert model(mx.array([[1, 2, 3]])).dtype == mx.float16
    assert (tmp_path / "a" / "tokenizer.json").read_text() == "{}"
