"""Stop before the first run is trained if the network or the update of any planned one cannot be made."""

import json
import sys

from rankcollapse import models, optim
from rankcollapse.config import read, run_config
from rankcollapse.errors import InputError

if __name__ == "__main__":
    try:
        # Runs that differ in these alone have the same network and update.
        configs = ({**run["config"], "seed": 0, "lr": 0.1, "epochs": 1} for run in read(sys.argv[1])["runs"].values())
        for config in map(run_config, {json.dumps(each): each for each in configs}.values()):
            net = models.skeleton(config)
            models.freeze(net, config.learning_blocks)
            optim.intervention(net, config)
    except InputError as error:
        sys.exit(str(error))
