"""Profiles: names, aliases, constants in seconds, memory, and how the GPUs compare."""

import pytest

from scheduler.errors import UnknownProfile
from scheduler.profiles import known_gpus, known_models, load_profile


def test_every_gpu_has_every_model():
    assert known_gpus() == ("a100-80g", "h100", "h200")
    assert known_models() == ("llama-3.1-8b", "qwen3-32b", "llama-3.1-70b")
    for gpu in known_gpus():
        for model in known_models():
            profile = load_profile(gpu, model)
            assert (profile.gpu, profile.model) == (gpu, model)


@pytest.mark.parametrize("name", ["a100", "A100-80GB", " a100-80g "])
def test_aliases_name_the_same_gpu(name):
    assert load_profile(name, "meta-llama/Llama-3.1-8B-Instruct") == load_profile("a100-80g", "llama-3.1-8b")


def test_an_unknown_gpu_or_model_is_named_with_the_known_ones():
    with pytest.raises(UnknownProfile, match="unknown gpu 'b200'; known: a100-80g, h100, h200"):
        load_profile("b200", "llama-3.1-8b")
    with pytest.raises(UnknownProfile, match=r"unknown model 'gpt-2'; known: llama-3\.1-8b"):
        load_profile("h100", "gpt-2")


def test_constants_are_seconds():
    profile = load_profile("h100", "llama-3.1-8b")

    assert profile.prefill_s(2048) == pytest.approx(1.23 * (4.37 + 0.01653 * 2048 + 1.041e-6 * 2048**2) / 1000)
    assert profile.decode_step_s(8, 8 * 500) == pytest.approx(
        1.23 * (6.43 + 0.0092 * 8 + 4.167e-5 * 4000) / 1000 + 3.8e-5 * 8
    )


def test_a_cached_prefix_costs_attention_only():
    profile = load_profile("h100", "llama-3.1-8b")

    whole, after = profile.prefill_s(4096), profile.prefill_s(1024, cached_tokens=3072)

    assert after < whole
    assert after + profile.prefill_s(3072) == pytest.approx(whole + profile.calibration * profile.prefill_base_s)


@pytest.mark.parametrize(
    ("gpu", "model", "tensor_parallel", "kv_bytes"),
    [
        ("h100", "llama-3.1-8b", 1, 128 * 1024),
        ("h200", "qwen3-32b", 2, 256 * 1024),
        ("a100", "llama-3.1-70b", 4, 320 * 1024),
    ],
)
def test_kv_fills_what_weights_leave_of_the_memory(gpu, model, tensor_parallel, kv_bytes):
    profile = load_profile(gpu, model)

    assert profile.tensor_parallel == tensor_parallel
    assert profile.kv_bytes_per_token == kv_bytes
    gib = profile.kv_capacity_tokens * kv_bytes / 2**30
    assert 0.3 * 80 * tensor_parallel < gib < 0.9 * 141 * tensor_parallel


def test_gpus_compare_as_measured_by_others():
    for model in known_models():
        a100, h100, h200 = (load_profile(gpu, model) for gpu in known_gpus())
        assert 1.8 < a100.prefill_s(4096) / h100.prefill_s(4096) < 3.2
        assert 0.9 < h100.prefill_s(4096) / h200.prefill_s(4096) < 1.1
        assert 1.5 < h100.capability / a100.capability < 1.95
        assert 1.1 < h200.capability / h100.capability < 1.4
        assert h200.kv_capacity_tokens > 1.5 * h100.kv_capacity_tokens
