"""Recording a machine: a scenario from its sysfs."""
