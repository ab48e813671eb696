"""Behind `mini_lb`: the balancer, its routes, and one request on its two legs."""
