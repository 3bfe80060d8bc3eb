"""200 varied sentences, on which encoders with fewer bits are held against float32."""

from __future__ import annotations

import itertools

WHO = [
    "A heddle", "The old weaver from the valley", "Nobody in the committee", "My neighbour's dog",
    "The treaty of 1648", "A quantum computer with a thousand qubits", "She", "Photosynthesis",
    "The new bakery on Mill Street", "An unexpected error in the third chapter",
]  # fmt: skip
DOES = [
    "lifts the warp", "was signed after thirty years of war", "sleeps all day",
    "converts light into chemical energy that plants store as sugar",
    "sells bread, cakes and coffee from six in the morning", "could not be explained",
    "surprised everybody", "needs temperatures close to absolute zero",
    "moved to Portugal in the spring, looking for quieter work", "is hard to translate",
]  # fmt: skip
ENDS = [".", ", as the newspapers of that week reported in some detail."]

SENTENCES = [f"{who} {does}{end}" for who, does, end in itertools.product(WHO, DOES, ENDS)]
