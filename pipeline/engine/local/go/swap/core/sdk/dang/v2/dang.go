// Package dangv2 takes the place of the Dang language runtime, which is not served.
// A module written in Dang is refused with a reason; pipelines use none.
package dangv2

import (
	"context"
	"errors"

	"github.com/dagger/dagger/core"
	"github.com/dagger/dagger/dagql"
)

var errLeftOut = errors.New("this engine is built without the Dang language: use an official Dagger engine to run modules written in it")

// Impl answers every question about a Dang module with the same error.
type Impl struct{}

func (Impl) ModuleTypes(
	context.Context,
	*core.SchemaBuilder,
	dagql.ObjectResult[*core.ModuleSource],
	dagql.ObjectResult[*core.Module],
) (dagql.ObjectResult[*core.Module], error) {
	return dagql.ObjectResult[*core.Module]{}, errLeftOut
}

func (Impl) Runtime(
	context.Context,
	*core.SchemaBuilder,
	dagql.ObjectResult[*core.ModuleSource],
) (core.ModuleRuntime, error) {
	return nil, errLeftOut
}
