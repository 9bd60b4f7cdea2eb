// Package idtui takes the place of Dagger's terminal UI, whose dependencies are not served.
// It holds the few names that the engine itself uses.
package idtui

import (
	"io"

	"github.com/dagger/dagger/dagql/call"
	"github.com/muesli/termenv"
)

// Marks that the engine writes in front of a line.
const (
	DotFilled   = "●"
	IconSuccess = "✔"
	IconFailure = "✘"
	IconCached  = "$"
)

// SkipLoggedOutTraceMsgEnvs are variables of the UI that is not here.
var SkipLoggedOutTraceMsgEnvs []string

// NewOutput returns an output with the 16 colors, or none where NO_COLOR asks for that.
func NewOutput(w io.Writer, opts ...termenv.OutputOption) *termenv.Output {
	profile := termenv.ANSI
	if termenv.EnvNoColor() {
		profile = termenv.Ascii
	}
	return termenv.NewOutput(w, append([]termenv.OutputOption{
		termenv.WithProfile(profile),
		termenv.WithTTY(true),
	}, opts...)...)
}

// Dump prints the calls that made an object, for the person who attaches a terminal to it.
type Dump struct {
	Newline string
	Prefix  string
}

// DumpID writes one line a call, the first call first.
func (d *Dump) DumpID(out *termenv.Output, id *call.ID) error {
	if receiver := id.Receiver(); receiver != nil {
		if err := d.DumpID(out, receiver); err != nil {
			return err
		}
	}
	newline := d.Newline
	if newline == "" {
		newline = "\n"
	}
	_, err := out.WriteString(d.Prefix + id.DisplaySelf() + newline)
	return err
}
