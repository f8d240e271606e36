import mlx.core as mx

from mach_decode.loader import load_moe


def test_each_request_has_its_own_cache_with_one_part_per_layer(sliced) -> None:
    model, _, store, factory = load_moe(str(sliced))
    first, second = factory.make(), factory.make()
    assert len(first) == len(model.layers)
    model(mx.array([[1, 2, 3]]), cache=first)
    factory.evaluate(first)
    assert first[0].offset == 3
    assert second[0].offset == 0
    store.close()
