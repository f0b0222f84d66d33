"""From a checkpoint folder to arrays on the device."""
