"""A daemon that trains LoRAs on GPU hosts from a RabbitMQ queue, and the client that talks to it."""
