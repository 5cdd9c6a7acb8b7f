package main

import (
	"math"
	"slices"
)

// quantile is the value below which the share q of the values lies; between two of
// them it is taken in proportion. Of no values it is 0.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	whole, share := math.Modf(q * float64(len(sorted)-1))
	low := sorted[int(whole)]
	high := sorted[min(int(whole)+1, len(sorted)-1)]
	return low + (high-low)*share
}

func median(values []float64) float64 { return quantile(values, 0.5) }

// order says which of two goes first in a round: each as often as the other, so that
// what changes while a machine gets warm or busy falls on both.
func order(round int) [2]int { return [2]int{round % 2, 1 - round%2} }

// ratios are those of the pairs: of two runs, one directly after the other.
func ratios(base, ours []float64) []float64 {
	out := make([]float64, min(len(base), len(ours)))
	for i := range out {
		out[i] = ours[i] / base[i]
	}
	return out
}
