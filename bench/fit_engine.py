"""Measures an engine, and fits the shared model's costs to it: `python bench/fit_engine.py http://127.0.0.1:30000`.

It sends prompts of several lengths one at a time, and then several at once, and reads the times of their tokens. The
first tokens give the costs of prefill, the further ones those of decode. The last line is what `simulate` takes.
Prompts are random token ids, so no prefix is cached. A chunk of the engine must hold the longest prompt.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import random
import statistics
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

# A token id that every vocabulary has is below this.
VOCABULARY = 16_000
TIMEOUT = 600.0


@dataclass
class Stream:
    """The times of one reply's tokens, in seconds since it was sent."""

    sent: float = 0.0
    tokens: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Sample:
    """A time in milliseconds, and what it depends on."""

    terms: tuple[float, ...]
    ms: float


def generate(url: str, prompt: list[int], tokens: int, stream: Stream) -> None:
    """Sends one prompt and notes when each of its tokens comes."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=TIMEOUT)
    sampling = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0}
    body = json.dumps({"input_ids": prompt, "sampling_params": sampling, "stream": True})
    stream.sent = time.perf_counter()
    connection.request("POST", "/generate", body, {"content-type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"{url}: status {response.status}: {response.read(300)!r}")
    for line in response:
        if line.startswith(b"data:") and b"[DONE]" not in line:
            stream.tokens.append(time.perf_counter())
    connection.close()


def batch(url: str, lengths: list[int], tokens: int, chance: random.Random) -> list[Stream]:
    """Sends prompts of these lengths at once."""
    streams = [Stream() for _ in lengths]
    failures: list[Exception] = []

    def run(length: int, stream: Stream) -> None:
        try:
            generate(url, [chance.randrange(100, VOCABULARY) for _ in range(length)], tokens, stream)
        except Exception as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(lengths, streams, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return streams


def first_token(url: str, length: int, repeats: int, chance: random.Random) -> Sample:
    """How long a prompt of this length takes alone: the median."""
    took = []
    for _ in range(repeats):
        (stream,) = batch(url, [length], 1, chance)
        took.append((stream.tokens[0] - stream.sent) * 1000)
    return Sample((1.0, length, length * (length + 1) / 2), statistics.median(took))


def step(url: str, size: int, length: int, tokens: int, chance: random.Random) -> Sample:
    """How long a step takes while so many prompts of this length decode together."""
    streams = batch(url, [length] * size, tokens, chance)
    begin = max(stream.tokens[0] for stream in streams)
    end = min(stream.tokens[-1] for stream in streams)
    gaps, contexts = [], []
    for stream in streams:
        within = [(place, at) for place, at in enumerate(stream.tokens) if begin < at <= end]
        if len(within) > 2:
            # The median, for this program may be held up.
            gaps += [(next_at - at) * 1000 for (_, at), (_, next_at) in itertools.pairwise(within)]
            contexts.append(length + (within[0][0] + within[-1][0]) / 2)
    if not gaps:
        raise RuntimeError(f"{size} prompts of {length} tokens never decoded together: more output tokens are needed")
    return Sample((1.0, size, statistics.fmean(contexts) * size), statistics.median(gaps))


def fit(samples: list[Sample]) -> list[float]:
    """The factors of the terms, none negative, with the least sum of squared relative errors."""
    kept = list(range(len(samples[0].terms)))
    while True:
        factors = solve(samples, kept)
        worst = min(kept, key=lambda place: factors[place])
        if factors[worst] >= 0 or len(kept) == 1:
            return [max(factor, 0.0) for factor in factors]
        kept.remove(worst)


def solve(samples: list[Sample], kept: list[int]) -> list[float]:
    """Least squares by elimination, over the terms that are kept."""
    # Terms differ by orders of magnitude.
    scale = {place: max(abs(sample.terms[place]) for sample in samples) or 1.0 for place in kept}
    rows = [[sample.terms[place] / scale[place] / sample.ms for place in kept] for sample in samples]
    table = [
        [sum(row[one] * row[other] for row in rows) for other in range(len(kept))] + [sum(row[one] for row in rows)]
        for one in range(len(kept))
    ]
    for place in range(len(kept)):
        pivot = max(range(place, len(kept)), key=lambda row: abs(table[row][place]))
        table[place], table[pivot] = table[pivot], table[place]
        if abs(table[place][place]) < 1e-12:
            raise RuntimeError("the samples are too much alike: more batches or contexts are needed")
        for row in range(len(kept)):
            if row != place:
                share = table[row][place] / table[place][place]
                table[row] = [one - share * other for one, other in zip(table[row], table[place], strict=True)]
    factors = [0.0] * len(samples[0].terms)
    for row, place in enumerate(kept):
        factors[place] = table[row][-1] / table[row][row] / scale[place]
    return factors


def measure(
    url: str, batches: list[int], contexts: list[int], tokens: int = 48, repeats: int = 3
) -> tuple[list[Sample], list[Sample]]:
    """Samples of first tokens, and of steps."""
    chance = random.Random(1)
    batch(url, [contexts[0]], 2, chance)  # what is slow once only
    firsts = [first_token(url, length, repeats, chance) for length in contexts]
    steps = [step(url, size, length, tokens, chance) for size in batches for length in contexts]
    return firsts, steps


def costs(firsts: list[Sample], steps: list[Sample]) -> dict[str, float]:
    """The shared model's options by name."""
    prefill, decode = fit(firsts), fit(steps)
    return {
        "prefill_base_ms": prefill[0],
        "prefill_token_us": prefill[1] * 1e3,
        "prefill_context_ns": prefill[2] * 1e6,
        "decode_base_ms": decode[0],
        "decode_sequence_us": decode[1] * 1e3,
        "decode_context_ns": decode[2] * 1e6,
    }


def errors(samples: list[Sample], factors: list[float]) -> list[float]:
    """Of each sample: by how much the model is off, as a share."""
    modelled = (sum(factor * term for factor, term in zip(factors, sample.terms, strict=True)) for sample in samples)
    return [value / sample.ms - 1 for value, sample in zip(modelled, samples, strict=True)]


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("url", help="an SGLang server, or a simulated worker")
    parser.add_argument("--batches", type=numbers, default=[1, 2, 4, 8, 16], help="sequences at once")
    parser.add_argument("--contexts", type=numbers, default=[128, 512, 2048, 6000], help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=48, help="tokens that each generates")
    parser.add_argument("--repeats", type=int, default=3, help="prompts per length for the first token")
    args = parser.parse_args()
    firsts, steps = measure(args.url, args.batches, args.contexts, args.tokens, args.repeats)
    print("| prompt | first token | model |\n| --- | --- | --- |")
    for sample, error in zip(firsts, errors(firsts, fit(firsts)), strict=True):
        print(f"| {sample.terms[1]:.0f} | {sample.ms:.1f} ms | {error:+.1%} |")
    print("\n| sequences | contexts | step | model |\n| --- | --- | --- | --- |")
    for sample, error in zip(steps, errors(steps, fit(steps)), strict=True):
        print(f"| {sample.terms[1]:.0f} | {sample.terms[2]:.0f} | {sample.ms:.2f} ms | {error:+.1%} |")
    print("\n" + " ".join(f"--engine {name}={value:.4g}" for name, value in costs(firsts, steps).items()))


if __name__ == "__main__":
    main()
