"""From a plan to a command: one module per engine or wrapper. They translate and never decide."""
