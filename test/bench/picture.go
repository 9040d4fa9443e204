package main

import (
	"fmt"
	"strings"
	"time"
)

// picture is the file of the drawing, beside the page.
const picture = "start.svg"

// drawn is the phases of a start in each way, as bars on one scale: an SVG that can be read on light and on dark.
func drawn(ways []way) string {
	const width, left, row, bar, top = 760, 130, 58, 22, 30
	var longest time.Duration
	total := func(w way) (sum time.Duration) {
		for _, p := range w.phases {
			sum += p.took
		}
		return sum
	}
	for _, w := range ways {
		longest = max(longest, total(w))
	}
	if longest == 0 {
		longest = 1
	}
	colours := map[string]string{"define": "#888888", "boot": "#d9822b", "tether": "#8f398f", "mount": "#2965cc", "copy": "#29a634", "process": "#d13913"}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", width, top+row*len(ways)+40)
	b.WriteString("<style>text{fill:#333}@media(prefers-color-scheme:dark){text{fill:#ddd}}</style>\n<title>The phases of a start</title>\n")
	fmt.Fprintf(&b, `<text x="0" y="16" font-weight="bold">The phases of a start, median; all bars have one scale</text>`+"\n")
	scale := float64(width-left-90) / float64(longest)
	seen := map[string]bool{}
	var names []string
	for i, w := range ways {
		y := top + i*row + 10
		fmt.Fprintf(&b, `<text x="0" y="%d">%s</text>`+"\n", y+15, w.name)
		x := float64(left)
		for _, p := range w.phases {
			if !seen[p.name] {
				seen[p.name] = true
				names = append(names, p.name)
			}
			colour := colours[p.name]
			if colour == "" {
				colour = "#5c7080"
			}
			wide := float64(p.took) * scale
			fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"><title>%s: %.1f ms</title></rect>`+"\n", x, y, max(wide, 0.5), bar, colour, p.name, float64(p.took)/float64(time.Millisecond))
			x += wide
		}
		fmt.Fprintf(&b, `<text x="%.1f" y="%d">%.0f ms</text>`+"\n", x+6, y+15, float64(total(w))/float64(time.Millisecond))
	}
	x, y := left, top+row*len(ways)+22
	for _, name := range names {
		colour := colours[name]
		if colour == "" {
			colour = "#5c7080"
		}
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="12" height="12" fill="%s"/><text x="%d" y="%d">%s</text>`+"\n", x, y-10, colour, x+16, y, name)
		x += 90
	}
	b.WriteString("</svg>\n")
	return b.String()
}
