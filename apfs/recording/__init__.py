"""Recording a machine: its sysfs read into a scenario."""
