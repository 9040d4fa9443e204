package main

import (
	"net"
	"strings"
	"testing"
)

func TestPage(t *testing.T) {
	all := things()
	figures := make([][2][]float64, len(all))
	for k := range all {
		figures[k] = [2][]float64{{2 << 20, 4 << 20, 6 << 20}, {4 << 20, 8 << 20, 12 << 20}}
	}
	page := pageOf(options{runs: 3, accel: "tcg"}, &site{version: "v"}, all, figures)
	if !strings.Contains(page, "| container to the outside | 4.0 | 8.0 | 2.00 (2.00 to 2.00) |") || strings.Count(page, "\n| ") != len(all)+2 {
		t.Error(page)
	}
	if addr := net.ParseIP(outside); addr == nil {
		t.Error(outside)
	}
}
