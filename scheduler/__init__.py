"""Who is where: session and engine records in Redis, placement policy, control loop."""
