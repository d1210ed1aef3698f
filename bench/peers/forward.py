"""Forward passes, and one that keeps every site."""

from peers.measuring import Work, timed
from peers.models import Models

SIZES = ((1, 128), (8, 64), (1, 1024))


def size(work: str, batch: int, length: int) -> tuple[str, ...]:
    """A worker's arguments."""
    return ("--work", work, "--batch", str(batch), "--length", str(length))


def forward(models: Models) -> list[Work]:
    return [one_forward(models, batch, length) for batch, length in SIZES]


def one_forward(models: Models, batch: int, length: int) -> Work:
    tokens = models.tokens(batch, length)
    model, hooked = models.transformers, models.hooked
    return Work(
        f"forward, {batch} x {length}",
        {"Endoscope": size("forward", batch, length)},
        {
            "transformers": timed(lambda: model(tokens, use_cache=False)),
            "TransformerLens": timed(lambda: hooked(tokens)),
        },
    )


def capture(models: Models) -> list[Work]:
    tokens = models.tokens(1, 128)
    hooked = models.hooked
    return [
        Work(
            "capture of all sites, 1 x 128",
            {"Endoscope": size("capture", 1, 128)},
            {
                "TransformerLens run_with_cache": timed(
                    lambda: hooked.run_with_cache(tokens)
                )
            },
        )
    ]
