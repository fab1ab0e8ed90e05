"""The Quasar adapter as a PEFT tuner."""
