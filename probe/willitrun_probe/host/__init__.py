"""The machine around the GPUs: processor, memory, PCI devices, links and model folders."""
