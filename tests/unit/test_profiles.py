"""Profiles: names, aliases, constants in seconds, memory, how the GPUs compare, and the users' own ones."""

import json

import pytest

from scheduler.config import SchedulerConfig
from scheduler.core import make_scheduler
from scheduler.errors import BadProfile, UnknownProfile
from scheduler.events import InstanceJoined, InstanceSpec, Role
from scheduler.profiles import ProfileBook, book_from_plain, known_gpus, known_models, load_profile, profile_book
from scheduler.wire import header, record, replay


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


OWN = {
    "gpu": "rtx-4090",
    "model": "llama-3.1-8b",
    "aliases": ["my-llama"],
    "prefill_s": [0.01, 4e-5, 1e-9],
    "decode_s": [0.016, 1e-4, 1e-7],
    "kv_bytes_per_token": 131_072,
    "kv_capacity_tokens": 40_000,
    "measured": {"engine": "vllm", "prefill_mape": 0.02},
}


def test_an_own_profile_serves_its_gpu_and_the_shipped_ones_stay():
    book = profile_book([("mine.toml", OWN)])

    assert book("RTX-4090", "my-llama").decode_step_s(1, 0) == pytest.approx(0.0161)
    assert book("rtx-4090", "meta-llama/Llama-3.1-8B").kv_capacity_tokens == 40_000
    assert book("h100", "llama-3.1-8b") == load_profile("h100", "llama-3.1-8b")
    assert book.knows_gpu("rtx-4090")
    assert not ProfileBook().knows_gpu("rtx-4090")
    assert book.gpus() == (*known_gpus(), "rtx-4090")


def test_an_own_profile_of_a_known_gpu_replaces_the_shipped_one_under_every_alias():
    book = profile_book([("mine.toml", OWN | {"gpu": "h100-80gb"})])

    assert book("h100", "llama-3.1-8b").prefill_base_s == 0.01
    assert book("h100", "qwen3-32b") == load_profile("h100", "qwen3-32b")


def test_capability_is_that_of_the_own_constants():
    profile = profile_book([("mine.toml", OWN)])("rtx-4090", "my-llama")

    assert profile.capability == pytest.approx(32 / (0.016 + 32e-4 + 1e-7 * 32 * 2048))


def test_a_missing_profile_is_told_with_the_own_ones():
    with pytest.raises(UnknownProfile, match=r"own profiles: rtx-4090 × llama-3\.1-8b"):
        profile_book([("mine.toml", OWN)])("b200", "llama-3.1-8b")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prefil_s": [1]}, "mine.toml: prefil_s: no such key"),
        ({"prefill_s": [0.1, 0.2]}, r"prefill_s: must be a list of three times in seconds, is \[0.1, 0.2\]"),
        ({"decode_s": [0.1, -1.0, 0.0]}, r"decode_s\[1\]: must be a finite number of at least 0, is -1.0"),
        ({"decode_s": [0.1, float("nan"), 0.0]}, r"decode_s\[1\]: must be a finite number"),
        ({"decode_s": [0, 0, 1e-7]}, "decode_s: would cost nothing"),
        ({"prefill_s": [0, 0, 1e-7]}, "prefill_s: would cost nothing"),
        ({"kv_capacity_tokens": 0}, "kv_capacity_tokens: must be a whole number above 0, is 0"),
        ({"kv_bytes_per_token": None}, "kv_bytes_per_token: must be a whole number above 0, is None"),
        ({"gpu": " "}, "gpu: must be a name"),
        ({"aliases": "x"}, "aliases: must be a list of names"),
        ({"aliases": [7]}, r"aliases\[0\]: must be a name"),
    ],
)
def test_an_unsound_own_profile_is_told_with_its_source_and_key(change, words):
    with pytest.raises(BadProfile, match=words):
        profile_book([("mine.toml", OWN | change)])


def test_two_own_profiles_of_the_same_gpu_and_model_are_refused():
    with pytest.raises(BadProfile, match=r"b\.toml: model: a\.toml is a profile of rtx-4090 and my-llama already"):
        profile_book([("a.toml", OWN), ("b.toml", OWN | {"model": "my-llama"})])


def test_a_book_goes_into_a_log_and_comes_back():
    book = profile_book([("mine.toml", OWN)])

    again = book_from_plain(json.loads(json.dumps(book.to_plain())))

    assert again("rtx-4090", "my-llama") == book("rtx-4090", "my-llama")


def test_a_log_with_own_profiles_replays_without_their_files():
    book = profile_book([("mine.toml", OWN)])
    config = SchedulerConfig()
    spec = InstanceSpec(
        instance_id="a", model="my-llama", gpu="rtx-4090", role=Role.MIXED, kv_capacity_tokens=40_000,
        block_tokens=16, max_num_seqs=8, max_batched_tokens=2048, kv_bytes_per_token=131_072,
    )  # fmt: skip
    joined = InstanceJoined(event_id="e1", instance=spec)
    decided = make_scheduler("agentserve", config, 0, profiles=book).handle(joined, 1.0)
    lines = [header("agentserve", config, 0, book), record(joined, 1.0, decided)]

    assert replay([json.dumps(line) for line in lines], make_scheduler) is None
    with pytest.raises(UnknownProfile):
        replay([json.dumps(line) for line in (header("agentserve", config, 0), lines[1])], make_scheduler)
