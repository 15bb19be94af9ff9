import pytest

from doublehead.config import TrainConfig
from doublehead.training.recipes import resolve
from doublehead.training.schedule import learning_rate


def test_the_published_recipe():
    """Reference: SGD 0.02 for 16 images, warm-up over 500 steps from a third, tenfold falls at 60k and 80k of 90k."""
    train = resolve("double-head-r50", "coco-1x").train
    assert (train.optimizer, train.momentum, train.weight_decay, train.batch_size) == ("sgd", 0.9, 1e-4, 16)
    assert train.steps == 90_000
    expected = {
        0: 0.02 / 3,
        250: 0.02 * 2 / 3,
        500: 0.02,
        59_999: 0.02,
        60_000: 0.002,
        79_999: 0.002,
        80_000: 0.0002,
        89_999: 0.0002,
    }
    for step, rate in expected.items():
        assert learning_rate(train, step, 90_000) == pytest.approx(rate), step


def test_cosine_falls_from_the_peak_to_nearly_nothing():
    train = TrainConfig(schedule="cosine", lr=0.4, warmup_steps=10, warmup_start=0.1)
    rates = [learning_rate(train, step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.04)
    assert rates[10] == max(rates) == pytest.approx(0.4, rel=1e-3)
    assert rates[500] == pytest.approx(0.2)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.4e-5


def test_milestones_follow_the_length_of_the_run():
    train = TrainConfig(lr=1.0, warmup_steps=0, milestones=(0.5, 0.75))
    assert [learning_rate(train, step, 8) for step in range(8)] == pytest.approx([1] * 4 + [0.1] * 2 + [0.01] * 2)
