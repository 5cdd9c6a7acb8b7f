package main

// order says which of two goes first in a round: each as often as the other, so that
// what changes while a machine gets warm or busy falls on both.
func order(round int) [2]int { return [2]int{round % 2, 1 - round%2} }
