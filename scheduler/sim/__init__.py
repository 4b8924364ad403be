"""A discrete-event model of a cluster that runs the production policies over a trace. Pure."""
