package vsphere

import (
	"context"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// vmExtra reads a machine's extra configuration as another client does.
func vmExtra(ctx context.Context, vm *object.VirtualMachine) ([]types.BaseOptionValue, error) {
	var o mo.VirtualMachine
	err := vm.Properties(ctx, vm.Reference(), []string{"config.extraConfig"}, &o)
	if err != nil {
		return nil, err
	}
	return o.Config.ExtraConfig, nil
}
