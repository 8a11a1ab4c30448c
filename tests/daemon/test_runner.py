"""What a trainer is given of its daemon's environment."""

import pytest

from training_worker.cards import Card
from training_worker.runner import trainer_environment


def card(*, simulated: bool) -> Card:
    """The second of a host's cards."""
    return Card(uuid="GPU-2", name="NVIDIA L4", memory_mib=23034, simulated=simulated, usd_per_hour=None)


def test_a_trainer_sees_its_own_card_by_uuid_and_no_other() -> None:
    """An index would mean another card after a restart of the host."""
    assert trainer_environment(card(simulated=False))["CUDA_VISIBLE_DEVICES"] == "GPU-2"


def test_a_trainer_of_a_simulated_card_sees_no_card_at_all() -> None:
    """Else it would train on a card that somebody else was given."""
    assert trainer_environment(card(simulated=True))["CUDA_VISIBLE_DEVICES"] == ""


def test_a_trainer_inherits_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it needs is passed on by name; all else stays with the daemon."""
    monkeypatch.setenv("TRAINING_AMQP_URL", "amqp://user:secret@broker/")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    assert "secret" not in str(trainer_environment(card(simulated=False)))
