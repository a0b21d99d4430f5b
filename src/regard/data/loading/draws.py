"""Where all chance comes from: a generator for each key, so that nothing keeps a random state.

The number of workers, of ranks, or a restart therefore changes nothing.
"""

import numpy as np

ORDER, VIEW, CROP, LABELS, WITHIN = 1, 2, 3, 4, 101  # purposes of a draw


def draws(*key: int) -> np.random.Generator:
    """The generator of one key, such as (PURPOSE, seed, epoch, image, view).

    Keys of different length are told apart only by their purpose: NumPy takes (1, 2) and (1, 2, 0) for the same.
    """
    return np.random.default_rng(key)
