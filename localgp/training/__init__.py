"""Fine-tuning: data, loss, distillation, checkpoints, the Lightning loop."""
