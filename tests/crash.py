"""A training run that dies in the middle."""

from fastddpm.train.trainer import Trainer


class CrashError(Exception):
    pass


def crash_at(monkeypatch, step):
    train_step = Trainer.train_step

    def crashing(self):
        if self.step == step:
            raise CrashError
        return train_step(self)

    monkeypatch.setattr(Trainer, "train_step", crashing)
