"""Stop before the first run is trained if the network or the update of any planned one cannot be made."""

import sys

from rankcollapse import models, optim
from rankcollapse.config import read, run_config
from rankcollapse.errors import InputError

if __name__ == "__main__":
    try:
        for run in read(sys.argv[1])["runs"].values():
            config = run_config(run["config"])
            net = models.skeleton(config)
            models.freeze(net, config.learning_blocks)
            optim.intervention(net, config)
    except InputError as error:
        sys.exit(str(error))
