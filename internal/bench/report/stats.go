package report

import (
	"math"
	"slices"
)

// Quantile is the value below which the share q of the values lies; between two of
// them it is taken in proportion. Of no values it is 0.
func Quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	whole, share := math.Modf(q * float64(len(sorted)-1))
	low := sorted[int(whole)]
	high := sorted[min(int(whole)+1, len(sorted)-1)]
	return low + (high-low)*share
}

// Median is the value in the middle.
func Median(values []float64) float64 { return Quantile(values, 0.5) }

// Ratios are those of the pairs: of two runs, one soon after the other.
func Ratios(base, ours []float64) []float64 {
	out := make([]float64, min(len(base), len(ours)))
	for i := range out {
		out[i] = ours[i] / base[i]
	}
	return out
}
