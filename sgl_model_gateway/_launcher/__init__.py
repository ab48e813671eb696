"""Behind `launch_server`: workers as processes, and the supervisor that keeps them."""
