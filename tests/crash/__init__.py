"""Kills, full disks and damage: what every stage and the running service make of them (``make crashes``)."""
